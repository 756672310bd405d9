"""The ratios of the benchmark command, held to those of an earlier version."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarking.peers.installed import MODULES
from benchmarking.ratios import fallen

ROOT = Path(__file__).parents[2]
BASELINE = Path(__file__).with_name("baseline.json")
COMMAND = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--rows=50000"]
RUNS = 2
"""A ratio has fallen where it has in each of so many runs: of one run, the system's choice of cores makes some a quarter lower."""


def test_no_ratio_fell_by_more_than_a_fifth(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """What was gained once is not lost unnoticed. The ratios found are in the figures, to be the next baseline."""
    if missing := [name for name in MODULES if importlib.util.find_spec(name) is None]:
        pytest.skip(f"the extra benchmark is not installed ({', '.join(missing)}): pip install -e '.[benchmark]'")
    expected = json.loads(BASELINE.read_text(encoding="utf-8"))
    best: dict[str, float] = {}
    for _ in range(RUNS):
        found = measured(tmp_path / "report.json")
        assert found.keys() == expected.keys()
        best = {name: max(value, best.get(name, value)) for name, value in found.items()}
        if not fallen(expected, best):
            break
    benchmark.extra_info.update(best)
    benchmark.pedantic(lambda: None, rounds=1)  # type: ignore[no-untyped-call]  # untyped there; the figures are above
    assert fallen(expected, best) == {}


def measured(file: Path) -> dict[str, float]:
    """Run the command, and return the ratios of its report."""
    subprocess.run([*COMMAND, f"--json={file}"], check=True)
    ratios: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["ratios"]
    return ratios
