"""The README as a package index shows it, where no other file of the repository is.

A hook of hatchling's. Where ``[project.urls]`` names the repository as ``Source``, links and images lead there. Otherwise they become plain
text, and the reader is told where the documents are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")
"""A link or an image whose target is a file of the repository."""

WHERE: Final = "The files in `docs/` are in the installed package as well, in `voiceassist_db/_docs/`."


def for_index(text: str, source: str | None, version: str) -> str:
    """Return the README for a package index.

    Args:
        text: The README.
        source: The address of the repository; None where there is none.
        version: This version, whose tag the links lead to.
    """

    def replaced(found: re.Match[str]) -> str:
        is_image, told, target = found.groups()
        if source is not None:
            return f"{is_image}[{told}]({source.rstrip('/')}/{'raw' if is_image else 'blob'}/v{version}/{target})"
        path = target.partition("#")[0]
        if is_image:
            return f"({told}: `{path}`)"
        return f"`{path}`" if told == path else f"{told} (`{path}`)"

    changed = LINK.sub(replaced, text)
    if source is None:
        title, summary, rest = changed.split("\n\n", 2)
        changed = "\n\n".join([title, summary, WHERE, rest])
    return changed


class Readme(MetadataHookInterface):
    """Gives the built package its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the field ``readme``."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        shown = for_index(text, source, str(metadata["version"]))
        metadata["readme"] = {"content-type": "text/markdown", "text": shown}
