"""Create the registry of key versions and the journal of rotations; no column of them holds key material.

Revision ID: voiceassist_0002
Revises: voiceassist_0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "voiceassist_0002"
down_revision = "voiceassist_0001"
branch_labels = None
depends_on = None

DROP = "drop-encrypted-data"
"""The argument of ``-x`` that lets encrypted data become unreadable."""

HAS_KEYS = "EXISTS (SELECT FROM encryption_keys)"
TABLES = ("encryption_keys", "index_keys", "key_rotations", "key_rotation_failures")
TAKEN = sa.text(
    "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace "
    "WHERE n.nspname OPERATOR(pg_catalog.=) pg_catalog.current_schema() "
    "AND CAST(c.relname AS pg_catalog.text) OPERATOR(pg_catalog.=) ANY (CAST(:names AS pg_catalog.text[])) ORDER BY 1"
)


def upgrade() -> None:
    if not context.is_offline_mode():
        _require_free(op.get_bind())
    op.create_table(
        "encryption_keys",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("scheme", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("check_value", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("scheme IN ('bound', 'direct')", name="encryption_keys_scheme"),
        sa.CheckConstraint("state IN ('current', 'previous', 'retired')", name="encryption_keys_state"),
        sa.CheckConstraint("version >= 1", name="encryption_keys_version"),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_encryption_keys")),
    )
    op.create_table(
        "index_keys",
        sa.Column("check_value", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('current', 'previous', 'retired')", name="index_keys_state"),
        sa.PrimaryKeyConstraint("check_value", name=op.f("pk_index_keys")),
    )
    op.create_table(
        "key_rotations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), server_default="encryption", nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=False),
        sa.Column("to_version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rows_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rows_per_second", sa.Double(), server_default="0", nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=True),
        sa.Column("holder_name", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('encryption', 'index', 'retirement')", name="key_rotations_kind"),
        sa.CheckConstraint("state IN ('running', 'interrupted', 'finished')", name="key_rotations_state"),
        sa.CheckConstraint("to_version > from_version", name="key_rotations_versions"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_rotations")),
    )
    op.create_table(
        "key_rotation_failures",
        sa.Column("rotation", sa.Uuid(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Text(), nullable=False),
        sa.Column("sqlstate", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["rotation"], ["key_rotations.id"], name=op.f("fk_key_rotation_failures_rotation")),
        sa.PrimaryKeyConstraint("rotation", "table_name", "row_id", name=op.f("pk_key_rotation_failures")),
    )


def _require_free(connection: sa.Connection) -> None:
    taken = connection.scalars(TAKEN, {"names": list(TABLES)}).all()
    if taken:
        raise CommandError(
            f"This schema has a table {' and a table '.join(taken)} already, which is not this package's registry of keys. Nothing of it was "
            "changed. Use another schema (`voiceassist-db migrate --schema NAME`)."
        )


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get(DROP) != "":  # =no is no
        _require_unused()
    op.drop_table("key_rotation_failures")
    op.drop_table("key_rotations")
    op.drop_table("index_keys")
    op.drop_table("encryption_keys")


def _require_unused() -> None:
    refusal = f"the registry has keys, which encrypted values of any table may need: downgrade with -x {DROP}"
    op.execute("LOCK TABLE encryption_keys IN ACCESS EXCLUSIVE MODE")
    if context.is_offline_mode():
        op.execute(f"DO $$ BEGIN IF {HAS_KEYS} THEN RAISE EXCEPTION '{refusal}'; END IF; END $$")
    elif op.get_bind().scalar(sa.text(f"SELECT {HAS_KEYS}")):
        raise CommandError(refusal)
