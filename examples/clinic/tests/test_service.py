"""The clinic as it is deployed: real roles, three workers, keys in OpenBao that are rotated and retired meanwhile."""

import re
import subprocess
import sys
from pathlib import Path

CLIENTS, ROUNDS, ANSWERS = 50, 3, 4  # at least so many rounds before the rotation, and after the retirement


def test_all_answers_are_right_during_a_rotation() -> None:
    root = Path(__file__).parents[1]
    command = ["voiceassist-db", "dev", "--", sys.executable, "tests/service.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    right = re.search(r"^(\d+) answers were right, and none was wrong$", done.stdout, re.MULTILINE)
    assert right, done.stdout
    assert int(right[1]) >= CLIENTS * 2 * ROUNDS * ANSWERS, done.stdout
