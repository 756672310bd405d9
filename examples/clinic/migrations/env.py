"""How Alembic runs in the clinic: its own history, beside the one of voiceassist-db."""

from __future__ import annotations

import os

from alembic import context

from clinic.tables import Base
from voiceassist_db import create_engine

engine = create_engine(os.environ["DATABASE_URL"])
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transaction_per_migration=True,
        autogenerate_plugins=["alembic.autogenerate.*", "voiceassist_db"],
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
