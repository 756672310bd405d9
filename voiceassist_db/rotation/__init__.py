"""Rotation: a new key, and every encrypted row of every encrypted table re-encrypted under it, inside the database."""

from voiceassist_db.rotation.index_key import IndexRotationReport, rotate_index_key
from voiceassist_db.rotation.report import OnProgress, Pace, Plan, Progress, RotationReport
from voiceassist_db.rotation.retirement import Retirement, retire
from voiceassist_db.rotation.run import next_action, plan, rotate

__all__ = [
    "IndexRotationReport",
    "OnProgress",
    "Pace",
    "Plan",
    "Progress",
    "Retirement",
    "RotationReport",
    "next_action",
    "plan",
    "retire",
    "rotate",
    "rotate_index_key",
]
