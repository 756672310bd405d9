"""A web application that opens its database when it is imported, and uses it at once: gunicorn's ``--preload`` then forks it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from voiceassist_db import Database

database = Database.from_env()
with database.transaction() as tx:
    tx.patients.page(limit=1)


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer with a patient, and with the process that answers; a POST changes the patient's name first."""
    patient_id = environ["PATH_INFO"].strip("/")
    with database.transaction() as tx:
        if environ["REQUEST_METHOD"] == "POST":
            tx.patients.update(patient_id, name=f"Name of {patient_id}")
        patient = tx.patients.get(patient_id)
    body = json.dumps([os.getpid(), patient.patient_id, patient.ssn, patient.name]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
