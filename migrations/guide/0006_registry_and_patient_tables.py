"""Join the registry and the patient tables, so that a database with both is at one revision.

Revision ID: voiceassist_0006
Revises: voiceassist_0003, voiceassist_0005
"""

from __future__ import annotations

revision = "voiceassist_0006"
down_revision = ("voiceassist_0003", "voiceassist_0005")
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
