"""Create the encrypted patient tables, their names as in the HIPAA guide.

Revision ID: voiceassist_0003
Revises: voiceassist_0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "voiceassist_0003"
down_revision = "voiceassist_0002"
branch_labels = None
depends_on = None


TABLES = ("patient_data", "clinical_notes")
DROP = "drop-encrypted-data"
"""The argument of ``-x`` that lets patients' data be deleted."""

HAS_ROWS = "(EXISTS (SELECT FROM patient_data) OR EXISTS (SELECT FROM clinical_notes))"
TAKEN = sa.text(
    "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace "
    "WHERE n.nspname OPERATOR(pg_catalog.=) pg_catalog.current_schema() "
    "AND CAST(c.relname AS pg_catalog.text) OPERATOR(pg_catalog.=) ANY (CAST(:names AS pg_catalog.text[])) ORDER BY 1"
)


def upgrade() -> None:
    if not context.is_offline_mode():
        _require_free(op.get_bind())
    op.create_table(
        "patient_data",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("ssn_encrypted", sa.LargeBinary(), nullable=True, comment="encrypted patient_data.ssn as text"),
        sa.Column("mrn_encrypted", sa.LargeBinary(), nullable=True, comment="encrypted patient_data.mrn as text"),
        sa.Column("name_encrypted", sa.LargeBinary(), nullable=True, comment="encrypted patient_data.name as text"),
        sa.Column(
            "date_of_birth_encrypted",
            sa.LargeBinary(),
            nullable=True,
            comment="encrypted patient_data.date_of_birth as date",
        ),
        sa.Column(
            "address_encrypted", sa.LargeBinary(), nullable=True, comment="encrypted patient_data.address as json"
        ),
        sa.Column("ssn_index", sa.LargeBinary(), nullable=True, comment="blind index of patient_data.ssn by ssn"),
        sa.Column("mrn_index", sa.LargeBinary(), nullable=True, comment="blind index of patient_data.mrn by mrn"),
        sa.Column("name_index", sa.LargeBinary(), nullable=True, comment="blind index of patient_data.name by name"),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "substring(address_encrypted from 1 for 6) = '\\xc30c04090108' AND substring(address_encrypted from 15 for 1) = '\\xd2'",
            name="patient_data_address_encrypted_format",
        ),
        sa.CheckConstraint(
            "substring(date_of_birth_encrypted from 1 for 6) = '\\xc30c04090108' AND substring(date_of_birth_encrypted from 15 for 1) = '\\xd2'",
            name="patient_data_date_of_birth_encrypted_format",
        ),
        sa.CheckConstraint(
            "substring(mrn_encrypted from 1 for 6) = '\\xc30c04090108' AND substring(mrn_encrypted from 15 for 1) = '\\xd2'",
            name="patient_data_mrn_encrypted_format",
        ),
        sa.CheckConstraint(
            "substring(name_encrypted from 1 for 6) = '\\xc30c04090108' AND substring(name_encrypted from 15 for 1) = '\\xd2'",
            name="patient_data_name_encrypted_format",
        ),
        sa.CheckConstraint(
            "substring(ssn_encrypted from 1 for 6) = '\\xc30c04090108' AND substring(ssn_encrypted from 15 for 1) = '\\xd2'",
            name="patient_data_ssn_encrypted_format",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_patient_data")),
        sa.UniqueConstraint("mrn_index", name=op.f("uq_patient_data_mrn_index")),
        sa.UniqueConstraint("patient_id", name=op.f("uq_patient_data_patient_id")),
    )
    op.create_index(op.f("ix_patient_data_name_index"), "patient_data", ["name_index"], unique=False)
    op.create_index(op.f("ix_patient_data_ssn_index"), "patient_data", ["ssn_index"], unique=False)
    op.create_table(
        "clinical_notes",
        sa.Column("patient", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("note_encrypted", sa.LargeBinary(), nullable=False, comment="encrypted clinical_notes.note as text"),
        sa.Column(
            "metadata_encrypted", sa.LargeBinary(), nullable=True, comment="encrypted clinical_notes.metadata as json"
        ),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "substring(metadata_encrypted from 1 for 6) = '\\xc30c04090108' AND substring(metadata_encrypted from 15 for 1) = '\\xd2'",
            name="clinical_notes_metadata_encrypted_format",
        ),
        sa.CheckConstraint(
            "substring(note_encrypted from 1 for 6) = '\\xc30c04090108' AND substring(note_encrypted from 15 for 1) = '\\xd2'",
            name="clinical_notes_note_encrypted_format",
        ),
        sa.ForeignKeyConstraint(["patient"], ["patient_data.id"], name=op.f("fk_clinical_notes_patient")),
        sa.PrimaryKeyConstraint("patient", "id", name=op.f("pk_clinical_notes")),
    )
    # SQLAlchemy 2.0 has no option of a table for it.
    op.execute("ALTER TABLE patient_data SET (fillfactor = 75)")
    op.execute("ALTER TABLE clinical_notes SET (fillfactor = 75)")
    # Ciphertext does not compress: stored as it is, a long note costs no futile attempt and is read in slices.
    op.execute("ALTER TABLE clinical_notes ALTER COLUMN note_encrypted SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE clinical_notes ALTER COLUMN metadata_encrypted SET STORAGE EXTERNAL")


def _require_free(connection: sa.Connection) -> None:
    taken = connection.scalars(TAKEN, {"names": list(TABLES)}).all()
    if taken:
        raise CommandError(
            f"This schema has a table {' and a table '.join(taken)} already, which this package did not create. Nothing of it was changed. "
            "Leave the patients' tables out (`voiceassist-db migrate --registry-only`), or use another schema "
            "(`voiceassist-db migrate --schema NAME`)."
        )


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get(DROP) != "":  # =no is no
        _require_empty()
    op.drop_table("clinical_notes")
    op.drop_table("patient_data")


def _require_empty() -> None:
    refusal = f"patient_data or clinical_notes has rows, and deleted patient data cannot be given back: downgrade with -x {DROP}"
    # A policy that hides rows is an error, and until the end of the transaction no row can be added.
    op.execute("SET LOCAL row_security = off")
    op.execute("LOCK TABLE patient_data, clinical_notes IN ACCESS EXCLUSIVE MODE")
    if context.is_offline_mode():
        op.execute(f"DO $$ BEGIN IF {HAS_ROWS} THEN RAISE EXCEPTION '{refusal}'; END IF; END $$")
        return
    connection = op.get_bind()
    if connection.scalar(sa.text(f"SELECT {HAS_ROWS}")):
        raise CommandError(refusal)
