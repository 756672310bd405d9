"""Which environments CI installs the wheel in, and what it says where one fails."""

from __future__ import annotations

import zipfile
from pathlib import Path

import install_matrix
import pytest
from install_matrix import NEWEST, PIPS, UVS, Environment, FailedError, Matrix, Python, plan, pythons

MACHINES = [(11,), (12,), (13,), (11, 13), (11, 12, 13), (11, 12, 13, 14), (15,), (12, 16)]


def machine(minors: tuple[int, ...]) -> list[Python]:
    """Return the Pythons of a machine."""
    return [Python((3, minor, 1), Path(f"/python3.{minor}")) for minor in minors]


@pytest.mark.parametrize("minors", MACHINES)
def test_each_python_and_each_installer_is_tried(minors: tuple[int, ...]) -> None:
    """Every Python has the oldest and the newest pip that run on it; every installer has a Python, or is said to have none."""
    found = machine(minors)
    environments, unused = plan(found)
    assert len(set(environments)) == len(environments)
    tried = {(each.python.version[1], each.tool, each.version) for each in environments}
    for minor in minors:
        able = [version for version, newest in PIPS.items() if minor <= newest]
        assert {(minor, "pip", version) for version in (*able[:1], NEWEST)} <= tried
    for version, newest in PIPS.items():
        has_python = min(minors) <= newest
        assert has_python is any(each.version == version for each in environments)
        assert has_python is not (f"pip {version}" in unused)
    assert set(UVS) == {each.version for each in environments if each.tool == "uv"}
    assert len(environments) <= 2 * len(minors) + len(PIPS) + len(UVS)


def test_this_machine_has_a_python() -> None:
    """The interpreter that runs this is found, by the path of its installation, once for each minor release."""
    found = pythons()
    assert found
    assert len({each.version[:2] for each in found}) == len(found)
    assert all(each.executable.is_file() and each.version >= (3, 11, 0) for each in found)


def test_a_placeholder_is_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called python3.13 and does not run, as pyenv leaves it on PATH, is passed over."""
    placeholder = tmp_path / "python3.13"
    placeholder.write_text("#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n")
    placeholder.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert placeholder not in {each.executable for each in pythons()}
    assert len(pythons()) == 1


def test_a_directory_that_cannot_be_looked_into_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH may name another user's. Root may look into all, so here it is one that no system can open."""
    monkeypatch.setenv("PATH", "/" + "x" * 5000)
    assert len(pythons()) == 1


def test_a_failure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One environment that fails fails the whole, is named with what it printed, and does not stop the others."""
    python = machine((12,))[0]
    bad, good = Environment(python, "pip", "24.2"), Environment(python, "pip", "24.0")

    def install(_: Matrix, environment: Environment) -> str:
        if environment == bad:
            raise FailedError("InvalidVersion")
        return "pip 24.0"

    monkeypatch.setattr(Matrix, "build", lambda _: "wheel")
    monkeypatch.setattr(Matrix, "download", lambda *_: None)
    monkeypatch.setattr(Matrix, "install", install)
    assert install_matrix.run(Matrix(tmp_path), [python], [bad, good]) == [bad]
    printed = capsys.readouterr().out
    assert "FAILED Python 3.12.1, pip 24.2: InvalidVersion" in printed
    assert "ok     Python 3.12.1, pip 24.0, which is pip 24.0" in printed


def test_what_a_wheel_lacks_is_found(tmp_path: Path) -> None:
    """A wheel without its migrations, or with links that lead nowhere on a package index, is not installed at all."""
    wheel, whole = tmp_path / "bad.whl", tmp_path / "good.whl"
    for path, text in (
        (wheel, "see [docs](docs/tables.md)"),
        (whole, "see [this](https://example.org) and [that](#that)"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("p.dist-info/METADATA", text)
            archive.writestr("p.dist-info/entry_points.txt", "" if path == wheel else "\n".join(install_matrix.ENTRIES))
            for name in install_matrix.NEEDED if path == whole else ():
                archive.writestr(name, "")
    found = install_matrix.problems_of(wheel)
    assert len(found) == len(install_matrix.NEEDED) + 1 + len(install_matrix.ENTRIES)
    assert "its description has the link docs/tables.md" in found
    assert install_matrix.problems_of(whole) == []


def test_no_python_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine where nothing was tried does not pass."""
    monkeypatch.setattr(install_matrix, "pythons", list)
    assert install_matrix.main() == 1
    assert "FAILED" in capsys.readouterr().out
