from collections.abc import Callable, Iterator

import pytest
from clinic.app import create_app
from clinic.tables import Base
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from voiceassist_db import AsyncDatabase

pytest_plugins = ["voiceassist_db.testing"]


@pytest.fixture(scope="session")
def voiceassist_tables() -> Callable[[Engine], None]:
    return Base.metadata.create_all


@pytest.fixture
def client(voiceassist_async_database: AsyncDatabase) -> Iterator[TestClient]:
    with TestClient(create_app(voiceassist_async_database)) as made:
        yield made
