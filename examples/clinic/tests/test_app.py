"""The clinic by its HTTP interface, on a real PostgreSQL with keys in memory."""

from datetime import UTC, datetime

from clinic.tables import Access
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from voiceassist_db import Database, uuid7
from voiceassist_db.rotation import retire, rotate

MORNING = datetime(2026, 5, 4, 8, 30, tzinfo=UTC)


def add(client: TestClient, doctor: int, patient: str, hour: int) -> str:
    """Add a visit, and return its id."""
    visit = {
        "doctor": doctor,
        "starts_at": MORNING.replace(hour=hour).isoformat(),
        "patient": patient,
        "reason": "fever",
    }
    answer = client.post("/visits", json=visit)
    assert answer.status_code == 201, answer.text
    return str(answer.json())


def test_a_visit_is_added_found_and_read(client: TestClient, voiceassist_database: Database) -> None:
    doctor = client.post("/doctors", params={"name": "Dr. Grey"}).json()
    visit = add(client, doctor, "José Núñez", 9)
    (found,) = client.get("/visits", params={"patient": "JOSÉ  NÚÑEZ"}).json()
    assert found["id"] == visit
    read = client.get(f"/visits/{visit}", params={"doctor": doctor}).json()
    assert (read["patient"], read["reason"]) == ("José Núñez", "fever")
    with voiceassist_database.transaction() as tx:
        assert [str(each.visit) for each in tx.session.scalars(select(Access))] == [visit]
        stored = tx.session.execute(text("SELECT patient_encrypted FROM visits")).scalar_one()
        assert "José".encode() not in stored


def test_visits_are_listed_in_order(client: TestClient) -> None:
    doctor = client.post("/doctors", params={"name": "Dr. Grey"}).json()
    later, sooner = add(client, doctor, "Later", 11), add(client, doctor, "Sooner", 10)
    assert [each["id"] for each in client.get(f"/doctors/{doctor}/visits").json()] == [sooner, later]
    assert client.get("/doctors/4711/visits").json() == []


def test_a_request_that_fails_leaves_nothing(client: TestClient) -> None:
    refused = client.post("/visits", json={"doctor": 4711, "starts_at": MORNING.isoformat(), "patient": "Nobody"})
    assert refused.status_code == 404
    assert client.get(f"/visits/{uuid7()}", params={"doctor": 1}).status_code == 404
    assert client.get("/visits", params={"patient": ""}).status_code == 422
    assert client.get("/visits", params={"patient": "Nobody"}).json() == []


def test_the_application_goes_on_through_a_rotation(client: TestClient, voiceassist_database: Database) -> None:
    doctor = client.post("/doctors", params={"name": "Dr. Grey"}).json()
    visit = add(client, doctor, "Before", 9)
    rotate(voiceassist_database.engine, voiceassist_database.keys)
    assert client.get(f"/visits/{visit}", params={"doctor": doctor}).json()["patient"] == "Before"
    add(client, doctor, "Between", 10)
    retire(voiceassist_database.engine, voiceassist_database.keys, grace_days=0)
    add(client, doctor, "After", 11)
    assert [each["patient"] for each in client.get(f"/doctors/{doctor}/visits").json()] == [
        "Before",
        "Between",
        "After",
    ]
