"""The benchmark command: it runs small, and its report has what readers of it rely on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from benchmark import command
from benchmarking import plot
from benchmarking.peers.installed import MODULES
from benchmarking.ratios import fallen

pytestmark = pytest.mark.wide

COMMAND = [sys.executable, str(Path(__file__).parents[1] / "scripts" / "benchmark.py")]
MISSING = [name for name in MODULES if importlib.util.find_spec(name) is None]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)


def test_a_small_run_leaves_the_report_and_the_picture(tmp_path: Path) -> None:
    """One run of all parts; of those that need libraries, only where they are installed, which is said aloud."""
    parts = ["rotation", "growth", "command_line", *([] if MISSING else ["peers", "single_row", "bulk"])]
    outputs = [f"--json={tmp_path / 'report.json'}", f"--plot={tmp_path / 'plot.svg'}"]
    done = run("--rows=2000", *outputs, *(f"--only={part}" for part in parts))
    assert done.returncode == 0, done.stderr
    assert "Rotation of 2,000 rows" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {"machine", "ratios", "seconds", *parts} == report.keys()
    assert {"cpu", "cores", "postgresql", "python", "voiceassist-db"} <= report["machine"].keys()
    assert all(value > 0 for value in report["ratios"].values())
    require_rotation(report)
    require_picture(tmp_path / "plot.svg", bars=3 + len(report.get("peers", ())))
    if MISSING:
        pytest.skip(
            f"no libraries to compare with ({', '.join(MISSING)}): pip install -e '.[benchmark]'; all else holds"
        )
    require_peers(report)
    require_single_rows_and_bulk(report)


def require_rotation(report: dict[str, Any]) -> None:
    """Require rate, ceiling, scaling, growth, HOT and WAL."""
    rotation = report["rotation"]
    for name in ("rows_per_second", "ceiling_rows_per_second", "ratio", "scaling", "wal_bytes_per_row"):
        assert rotation[name] > 0
    for ours in (rotation, rotation["with_workers"]):
        assert 1 <= ours["table_growth"] <= 1.1
        assert 1 <= ours["index_growth"] <= 1.1
        assert 0.9 <= ours["hot_ratio"] <= 1
        assert 0 < ours["rows_per_second_with_proof"] <= ours["rows_per_second"]
    assert [point["rows"] for point in report["growth"]["points"]] == [10_000]


def require_figures_worth_having(peer: dict[str, Any]) -> None:
    """Require of a peer's figures what is known of each: nothing of theirs stays on its page where nothing leaves room."""
    assert peer["table_growth"] > 1.3
    assert set(peer["better_at"]) <= {
        "rows_per_second",
        "table_growth",
        "index_growth",
        "wal_bytes_per_row",
        "p99_read_ms",
        "p99_write_ms",
    }


def require_picture(file: Path, *, bars: int) -> None:
    """Require well-formed XML with a bar for the ceiling, two for ours, and one for each peer."""
    drawn = ET.fromstring(file.read_text(encoding="utf-8"))  # noqa: S314  # of our own making
    assert len([each for each in drawn.iter() if each.get("class") in {"limit", "ours", "theirs"}]) == bars


def require_peers(report: dict[str, Any]) -> None:
    """Require that every way does its job with the versions of the lock file, the libraries among them."""
    assert [peer["name"] for peer in report["peers"] if "failure" in peer] == []
    for peer in report["peers"]:
        assert peer["version"]
        assert peer["rows_per_second"] > 0
        assert peer["ours_over_theirs"] > 0
        require_figures_worth_having(peer)
        assert peer.get("with_workers_over_theirs", 0) > 0 or peer["connections"] == 2
    assert {"sqlalchemy-utils", "advanced-alchemy", "django-pgcrypto-fields", "django-fernet-encrypted-fields"} <= {
        peer["name"].partition(" ")[0] for peer in report["peers"]
    }


def require_single_rows_and_bulk(report: dict[str, Any]) -> None:
    """Require each operation over psycopg and over each library that offers it."""
    assert list(report["single_row"]) == ["insert", "get", "find", "update"]
    for figures in (*report["single_row"].values(), report["bulk"]["page"], report["bulk"]["add_few"]):
        assert figures["ratio"] > 0
        assert {each.get("failure", "not offered") for each in figures["others"]} == {"not offered"}
    assert report["bulk"]["add_many"]["ratio"] > 0
    assert report["bulk"]["import"]["over_add_many"] > 0
    assert report["bulk"]["verify"]["ratio"] > 0


def test_a_ratio_that_falls_by_more_than_a_fifth_is_found() -> None:
    """Held to the baseline: 0.81 of a ratio is noise, 0.79 is not, and neither is a ratio that nobody measures any more."""
    baseline = json.loads((Path(__file__).parent / "benchmarks" / "baseline.json").read_text(encoding="utf-8"))
    assert fallen(baseline, {name: 0.81 * value for name, value in baseline.items()}) == {}
    name = "get as speed over psycopg"
    assert set(fallen(baseline, baseline | {name: 0.79 * baseline[name]})) == {name}
    measured = {each: value for each, value in baseline.items() if each != name}
    assert fallen(baseline, measured) == {name: (baseline[name], None)}


@pytest.mark.skipif(not MISSING, reason="the extra benchmark is installed, so that nothing is missing")
def test_libraries_that_are_missing_are_named() -> None:
    """Who lacks the extra is told how to get it, before anything is measured."""
    done = run("--only=peers")
    assert done.returncode == 1
    assert "pip install -c constraints.txt -e '.[embedded,benchmark]'" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--only=nonsense"],
        ["--only=bulk", "--plot=plot.svg"],
        ["--only=command_line", "--long"],
        ["--only=command_line", "--json=/nowhere/report.json"],
        ["--rows=0"],
        ["--workers=0"],
    ],
)
def test_wrong_usage_is_refused(options: list[str]) -> None:
    """An unknown part, a plot of what is not measured, and a file that cannot be written are exit code 2, ahead of everything."""
    done = run(*options)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("dsn", ["nonsense", "postgresql://nobody@127.0.0.1:1/nothing"])
def test_a_server_that_is_none_is_told_by_the_options_name(dsn: str) -> None:
    """And not by the name of a variable that nobody set."""
    done = run("--only=command_line", f"--dsn={dsn}")
    assert done.returncode == 1
    assert "--dsn" in done.stderr
    assert "DATABASE_URL" not in done.stderr


def test_an_interrupted_run_keeps_what_it_has_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """^C while a later part is measured, raised where it would be: no part before is lost."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarking.growth.measure", interrupted)
    file = tmp_path / "report.json"
    done = CliRunner().invoke(command, ["--rows=2000", "--only=rotation", "--only=growth", f"--json={file}"])
    assert done.exit_code == 1
    assert "Rotation of 2,000 rows" in done.stdout
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["rotation"]["rows_per_second"] > 0
    assert "growth" not in report


def test_a_name_in_the_picture_cannot_break_it() -> None:
    """Names of peers and processors are text, whatever is in them."""
    rotation = {"ceiling_rows_per_second": 60_000, "rows_per_second": 50_000, "ratio": 0.8, "workers": 1}
    peer = {
        "name": '<&> "quoted"',
        "rows_per_second": 900,
        "ours_over_theirs": 31.2,
        "with_workers_over_theirs": 55.6,
    }
    machine = {"cores": 2, "cpu": "<&>", "postgresql": "17", "fsync": "on"}
    drawn = ET.fromstring(plot.svg({"rotation": rotation, "peers": [peer], "machine": machine}))  # noqa: S314  # as above
    texts = {each.text for each in drawn.iter()}
    assert {'<&> "quoted"', "ours is x31.2 and x55.6"} <= texts
