"""The clinic's history and voiceassist-db's stay apart, and autogenerate finds nothing to do."""

import os
import subprocess
from pathlib import Path

STEPS = """
export DATABASE_URL=$OWNER_DATABASE_URL
alembic upgrade heads && alembic check && alembic current
alembic revision --autogenerate -m nothing --rev-id empty --version-path="$1" && cat "$1"/*
alembic downgrade base && voiceassist-db migrate && alembic upgrade heads && alembic check && voiceassist-db status
"""


def test_the_histories_stay_apart(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    (tmp_path / "versions").mkdir()
    ini = (root / "alembic.ini").read_text().replace("%(here)s", str(root))
    config = tmp_path / "alembic.ini"
    config.write_text(ini + f"version_locations = {root}/migrations/versions:{tmp_path}/versions\n")
    command = ["voiceassist-db", "dev", "--", "sh", "-exc", STEPS, "sh", str(tmp_path / "versions")]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"ALEMBIC_CONFIG": str(config)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("No new upgrade operations detected.") == 2
    assert "0002 (head)" in done.stdout
    upgrade = done.stdout.partition("def upgrade() -> None:")[2].partition("def downgrade")[0]
    assert [line.strip() for line in upgrade.splitlines() if line.strip() and "###" not in line] == ["pass"]
    assert "visits: empty" in done.stdout
