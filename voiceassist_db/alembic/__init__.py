"""The Alembic plugin: operations for encrypted columns, and an autogenerate that knows what their declarations need.

Alembic 1.18 and later find it by the entry point ``alembic.plugins``. Operations are then there in every environment. Autogenerate uses
it where ``env.py`` names it: ``autogenerate_plugins=["alembic.autogenerate.*", "voiceassist_db"]``. Older versions need
:func:`install`. Holds no key, and imports nothing of an application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin

NAME: Final = "voiceassist_db"

__all__ = ["NAME", "install", "setup"]


def setup(plugin: Plugin) -> None:
    """Register the plugin, as Alembic asks for it."""
    from alembic.util import DispatchPriority, PriorityDispatchResult

    from voiceassist_db.alembic.comparing import complete_changes, keep_ours_out
    from voiceassist_db.alembic.executing import register

    def prepare(context: Any, *_: Any) -> PriorityDispatchResult:
        keep_ours_out(context)
        return PriorityDispatchResult.CONTINUE

    def compare(*given: Any) -> PriorityDispatchResult:
        complete_changes(*given)
        return PriorityDispatchResult.CONTINUE

    register()
    plugin.add_autogenerate_comparator(prepare, "autogenerate", qualifier="postgresql", priority=DispatchPriority.FIRST)
    plugin.add_autogenerate_comparator(compare, "autogenerate", qualifier="postgresql", priority=DispatchPriority.LAST)


def install() -> None:
    """Register the plugin in an Alembic older than 1.18, which knows no plugins. Call it at the top of ``env.py``.

    In later versions it does nothing that the entry point has not done.
    """
    try:
        from alembic.runtime import plugins
    except ImportError:
        from alembic import autogenerate

        from voiceassist_db.alembic.comparing import complete_changes
        from voiceassist_db.alembic.executing import register

        comparators: Any = autogenerate.comparators
        if register():
            comparators.dispatch_for("schema")(complete_changes)
        return
    if NAME not in plugins._all_plugins:  # noqa: SLF001  # Alembic has no other way to ask
        import sys

        plugins.Plugin.setup_plugin_from_module(sys.modules[__name__], NAME)


# Alembic asks for this module while it is imported itself: by now there is what it asks for.
import alembic.operations  # noqa: E402, F401
