"""Give a database room for its identity, which `voiceassist-db init-keys` makes.

Revision ID: voiceassist_0005
Revises: voiceassist_0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "voiceassist_0005"
down_revision = "voiceassist_0004"
branch_labels = None
depends_on = None

DROP = "drop-encrypted-data"
"""The argument of ``-x`` that lets encrypted data become unreadable."""

HAS_KEYS = "EXISTS (SELECT FROM encryption_keys)"


def upgrade() -> None:
    op.create_table(
        "database_identity",
        sa.Column("is_only", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("is_only", name="database_identity_is_only"),
        sa.PrimaryKeyConstraint("is_only", name=op.f("pk_database_identity")),
    )


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get(DROP) != "":  # =no is no
        _require_unused()
    op.drop_table("database_identity")


def _require_unused() -> None:
    refusal = f"the registry has keys, which encrypted values of any table may need: downgrade with -x {DROP}"
    op.execute("LOCK TABLE encryption_keys IN ACCESS EXCLUSIVE MODE")
    if context.is_offline_mode():
        op.execute(f"DO $$ BEGIN IF {HAS_KEYS} THEN RAISE EXCEPTION '{refusal}'; END IF; END $$")
    elif op.get_bind().scalar(sa.text(f"SELECT {HAS_KEYS}")):
        raise CommandError(refusal)
