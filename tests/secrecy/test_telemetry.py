"""What OpenTelemetry's instrumentation of psycopg records of the product's statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import URL

from tests.secrecy.scanner import Scanner
from tests.secrecy.values import Secrets
from voiceassist_db import Database, Patient, Repositories, create_engine
from voiceassist_db.errors import DuplicateError
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate
from voiceassist_db.verification import verify

PARAMETERS = "db.statement.parameters"


@pytest.fixture(params=[True, False], ids=["parameters captured", "as installed"])
def spans(request: pytest.FixtureRequest) -> Iterator[InMemorySpanExporter]:
    """Every span that the driver's instrumentation makes."""
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = PsycopgInstrumentor()
    instrumentor.instrument(tracer_provider=tracers, capture_parameters=request.param, skip_dep_check=True)
    yield exporter
    instrumentor.uninstrument()
    tracers.shutdown()


def text_of(spans: tuple[ReadableSpan, ...]) -> str:
    """Return all that spans hold."""
    return "\n".join(span.to_json() + repr(dict(span.attributes or {})) for span in spans)


def test_a_trace_holds_neither_keys_nor_encrypted_values(
    spans: InMemorySpanExporter,
    request: pytest.FixtureRequest,
    provider: VaultKeyProvider,
    database_url: URL,
) -> None:
    """Nothing as installed. With ``capture_parameters``, what names rows, such as patient_id, and the masks of all else."""
    captures = "parameters captured" in request.node.callspec.id
    secrets = Secrets()
    one, changed = secrets.patient(1), secrets.patient(2)
    many = [secrets.patient(number) for number in range(10, 15)]
    secrets.store(provider.fetch())
    with Database(create_engine(database_url), provider) as database:
        steps: dict[str, Callable[[Repositories], object]] = {
            "add": lambda tx: tx.patients.add(one),
            "update": lambda tx: tx.patients.update(one.patient_id, name=changed.name, ssn=changed.ssn),
            "get": lambda tx: tx.patients.get(one.patient_id),
            "get_many": lambda tx: tx.patients.get_many([one.patient_id]),
            "find": lambda tx: tx.patients.find_by_ssn(str(changed.ssn)),
            "page": lambda tx: tx.patients.page(limit=1000),
            "add_many": lambda tx: tx.patients.add_many(many),
            "delete": lambda tx: tx.patients.delete(one.patient_id),
        }
        shown: dict[str, str] = {}
        for name, step in steps.items():
            spans.clear()
            with database.transaction() as tx:
                step(tx)
            shown[name] = text_of(spans.get_finished_spans())
        spans.clear()
        assert rotate(database.engine, database.keys).done
        secrets.store(provider.fetch())
        verify(database.engine, database.keys)
        shown["rotate and verify"] = text_of(spans.get_finished_spans())
    scanner = Scanner(secrets.known)
    hits = {name: scanner.hits(text.encode()) for name, text in shown.items()}
    assert [] == [hit for found in hits.values() for hit in found if "key" in hit]
    assert {} == {name: found for name, found in hits.items() if found}
    assert captures is any(PARAMETERS in text for text in shown.values())
    assert "INSERT INTO" in shown["add"]
    if captures:
        for name in ("get", "find"):
            assert "Keys(•••)" in shown[name]
        for name in ("add", "update"):
            assert "MaskedValues(•••)" in shown[name]
        assert one.patient_id in shown["get"]
        assert "Array(•••)" in shown["get_many"]


def test_the_parameters_of_a_write_are_the_only_place(
    spans: InMemorySpanExporter, provider: VaultKeyProvider, database_url: URL
) -> None:
    """Neither a span's name, its statement, its events nor the error of a failed statement holds a value."""
    secrets = Secrets()
    patient = secrets.patient(1)
    with Database(create_engine(database_url), provider) as database:
        wanted = Patient(patient_id="PT-1", name=patient.name, mrn=patient.mrn)
        with database.transaction() as tx:
            tx.patients.add(wanted)
        with pytest.raises(DuplicateError), database.transaction() as tx:
            tx.patients.add(replace(wanted, id=uuid4(), created_at=None, updated_at=None))
    found = spans.get_finished_spans()
    assert found
    scanner = Scanner(secrets.known)
    for span in found:
        attributes = {name: value for name, value in (span.attributes or {}).items() if name != PARAMETERS}
        rest = f"{span.name} {attributes} {span.status.description} {[(each.name, each.attributes) for each in span.events]}"
        assert {} == scanner.hits(rest.encode())
