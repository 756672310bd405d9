"""The clinic as it is deployed: real roles, three workers, keys in OpenBao that are rotated and retired meanwhile."""

import subprocess
import sys
from pathlib import Path


def test_all_answers_are_right_during_a_rotation() -> None:
    root = Path(__file__).parents[1]
    command = ["voiceassist-db", "dev", "--", sys.executable, "tests/service.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1200 of 1200 answers were right" in done.stdout
