"""Patients from a CSV file: all of it or nothing, and every broken line by its number."""

from voiceassist_db.importing.patients import import_patients
from voiceassist_db.importing.report import BadLine, ImportReport

__all__ = ["BadLine", "ImportReport", "import_patients"]
