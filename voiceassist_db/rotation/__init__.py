"""Rotation: a new key, and every encrypted row of every encrypted table re-encrypted under it, inside the database."""

from voiceassist_db.rotation.report import RotationReport
from voiceassist_db.rotation.run import rotate

__all__ = ["RotationReport", "rotate"]
