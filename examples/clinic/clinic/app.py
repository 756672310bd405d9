"""The clinic's HTTP interface: async requests that use the ORM and repositories in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from clinic.tables import Access, Doctor, Visit
from voiceassist_db import AsyncDatabase
from voiceassist_db.errors import NotFoundError


class NewVisit(BaseModel):
    doctor: int
    starts_at: datetime
    patient: str
    reason: str | None = None


class ShownVisit(NewVisit):
    id: UUID


class Listed(BaseModel):
    id: UUID
    starts_at: datetime


def create_app(database: AsyncDatabase | None = None) -> FastAPI:
    """Make the application; a test gives its own database."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.database = database or AsyncDatabase.from_env()
        yield
        await app.state.database.close()

    app = FastAPI(title="Clinic", lifespan=lifespan)
    app.exception_handler(NotFoundError)(not_found)
    app.exception_handler(ValueError)(not_valid)
    app.post("/doctors", status_code=201)(add_doctor)
    app.post("/visits", status_code=201)(add_visit)
    app.get("/visits")(find_visits)
    app.get("/visits/{visit}")(read_visit)
    app.get("/doctors/{doctor}/visits")(list_visits)
    return app


def database_of(request: Request) -> AsyncDatabase:
    """Return the application's database."""
    found: AsyncDatabase = request.app.state.database
    return found


async def session_of(database: Annotated[AsyncDatabase, Depends(database_of)]) -> AsyncIterator[AsyncSession]:
    """Give a request its session, in one transaction."""
    async with AsyncSession(database.engine, expire_on_commit=False) as session, session.begin():
        yield session


Session = Annotated[AsyncSession, Depends(session_of, scope="function")]
Keyed = Annotated[AsyncDatabase, Depends(database_of)]


async def not_found(_: Request, error: Exception) -> JSONResponse:
    """Answer for a row that is not there; an error's text holds no value of a patient."""
    return JSONResponse({"detail": str(error)}, 404)


async def not_valid(_: Request, error: Exception) -> JSONResponse:
    """Answer for a value that a column cannot hold."""
    return JSONResponse({"detail": str(error)}, 422)


async def add_doctor(name: str, session: Session) -> int:
    """Add a doctor by the ORM, which knows nothing of keys."""
    doctor = Doctor(name=name)
    session.add(doctor)
    await session.flush()
    return doctor.id


async def add_visit(new: NewVisit, session: Session, database: Keyed) -> UUID:
    """Add a visit, in the session's transaction."""
    if await session.get(Doctor, new.doctor) is None:
        raise HTTPException(404, "no such doctor")
    visit = Visit(**new.model_dump())
    await database.using(session).run(lambda tx: tx.repository(Visit).add(visit))
    return visit.id


async def read_visit(visit: UUID, doctor: int, session: Session, database: Keyed) -> ShownVisit:
    """Show a visit to a doctor, and write down who saw it."""
    found = await database.using(session).run(lambda tx: tx.repository(Visit).get(visit))
    session.add(Access(visit=visit, doctor=doctor))
    return ShownVisit(
        id=found.id, doctor=found.doctor, starts_at=found.starts_at, patient=found.patient, reason=found.reason
    )


async def find_visits(patient: str, session: Session, database: Keyed) -> list[Listed]:
    """Find the visits of a patient by name; nothing but the name is decrypted, to be compared."""
    fields = ("id", "starts_at")
    found = await database.using(session).run(lambda tx: tx.repository(Visit).find(patient=patient, fields=fields))
    return [Listed(id=each.id, starts_at=each.starts_at) for each in found]


async def list_visits(doctor: int, session: Session, database: Keyed, limit: int = 50) -> list[ShownVisit]:
    """List a doctor's next visits in their order."""
    columns = Visit.__table__.c
    visits = await database.using(session).run(
        lambda tx: tx.repository(Visit).select(columns.doctor == doctor, order_by=columns.starts_at, limit=limit)
    )
    return [
        ShownVisit(id=each.id, doctor=each.doctor, starts_at=each.starts_at, patient=each.patient, reason=each.reason)
        for each in visits
    ]
