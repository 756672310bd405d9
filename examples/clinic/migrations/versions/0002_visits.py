"""Encrypted visits, as ``alembic revision --autogenerate`` wrote them, and the rights of the application's role."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "visits",
        sa.Column("id", sa.Uuid(), autoincrement=False, nullable=False),
        sa.Column("doctor", sa.Integer(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("patient_encrypted", sa.LargeBinary(), nullable=False, comment="encrypted visits.patient as text"),
        sa.Column("reason_encrypted", sa.LargeBinary(), nullable=True, comment="encrypted visits.reason as text"),
        sa.Column("patient_index", sa.LargeBinary(), nullable=True, comment="blind index of visits.patient by name"),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "substring(patient_encrypted from 1 for 6) OPERATOR(pg_catalog.=) '\\xc30c04090108' AND substring(patient_encrypted from 15 for 1) OPERATOR(pg_catalog.=) '\\xd2'",
            name=op.f("visits_patient_encrypted_format"),
        ),
        sa.CheckConstraint(
            "substring(reason_encrypted from 1 for 6) OPERATOR(pg_catalog.=) '\\xc30c04090108' AND substring(reason_encrypted from 15 for 1) OPERATOR(pg_catalog.=) '\\xd2'",
            name=op.f("visits_reason_encrypted_format"),
        ),
        sa.ForeignKeyConstraint(["doctor"], ["doctors.id"], name=op.f("visits_doctor_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("visits_pk")),
    )
    op.complete_encrypted_table("visits", external=["patient_encrypted", "reason_encrypted"], fillfactor=75)
    op.create_index(op.f("visits_patient_index_ix"), "visits", ["patient_index"], unique=False)
    # `voiceassist-db provision` made this role, and gives it its rights on encrypted tables; these two are the clinic's own.
    op.execute("GRANT SELECT, INSERT ON doctors, accesses TO voiceassist_app")


def downgrade() -> None:
    op.execute("REVOKE ALL ON doctors, accesses FROM voiceassist_app")
    op.drop_index(op.f("visits_patient_index_ix"), table_name="visits")
    op.drop_encrypted_table("visits")
