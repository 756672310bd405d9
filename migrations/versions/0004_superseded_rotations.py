"""Let the journal of rotations record that a run was superseded.

Revision ID: voiceassist_0004
Revises: voiceassist_0002
"""

from __future__ import annotations

from alembic import op

revision = "voiceassist_0004"
down_revision = "voiceassist_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _exchange("state IN ('running', 'interrupted', 'finished', 'superseded')")


def downgrade() -> None:
    op.execute("UPDATE key_rotations SET state = 'finished' WHERE state = 'superseded'")
    _exchange("state IN ('running', 'interrupted', 'finished')")


def _exchange(condition: str) -> None:
    op.drop_constraint("key_rotations_state", "key_rotations", type_="check")
    op.create_check_constraint("key_rotations_state", "key_rotations", condition)
