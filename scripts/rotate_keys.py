#!/usr/bin/env python3
"""Rotate the encryption key of a live database. See --help."""

from voiceassist_db.cli import run
from voiceassist_db.cli.rotate_command import rotate_keys

if __name__ == "__main__":
    run(rotate_keys)
