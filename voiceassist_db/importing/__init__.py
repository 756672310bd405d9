"""Patients from a CSV file: all of it or nothing, and every broken line by its number."""

from voiceassist_db.importing.columns import Reading
from voiceassist_db.importing.patients import import_patients
from voiceassist_db.importing.report import BadLine, ImportReport
from voiceassist_db.importing.tally import Update

__all__ = ["BadLine", "ImportReport", "Reading", "Update", "import_patients"]
