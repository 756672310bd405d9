"""How the commands are called that messages name as the next step. They are in the installed package, on every machine.

Owns these words and nothing else. A checkout has the same commands as ``scripts/rotate_keys.py`` and ``alembic upgrade head``.
"""

from __future__ import annotations

from typing import Final

MIGRATE: Final = "voiceassist-db migrate"
ROTATE: Final = "voiceassist-db rotate"
PLAN: Final = f"{ROTATE} --dry-run"
ROTATE_INDEX: Final = f"{ROTATE} --index-key"
RETIRE: Final = "voiceassist-db retire"
