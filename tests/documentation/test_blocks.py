"""Every command, Python block and SQL statement of README and docs runs as it is written."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import make_url

from tests.conftest import AT_HOME, VaultServer, in_memory, plain
from tests.documentation.blocks import ELSEWHERE, GENERATED, NOT_RUN, PAGES, ROOT, Block, blocks_of, reason
from tests.documentation.scenes import DEPLOYED, SCENES, Scene
from tests.documentation.session import ROLES, Session
from tests.documentation.shell import quick_commands
from voiceassist_db import normalisers
from voiceassist_db.cli.local import NAME, local_deployment

DATABASE: Final = "clinic"
"""Name of the reader's database."""

wide = pytest.mark.wide


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED])
def test_each_block_is_run_or_listed(page: str) -> None:
    """A new block needs nothing if its page's session can run it; otherwise it needs a line in the list, with a reason."""
    unknown = [
        f"{page}:{block.line} {line}"
        for block in blocks_of(page)
        for line in block.lines
        if page not in SCENES and page not in ELSEWHERE and reason(block, line) is None
    ]
    assert unknown == []


def test_the_lists_name_what_there_is() -> None:
    """What was removed from a page leaves the lists, so that they show what is really not run."""
    stale = []
    for page, lines in NOT_RUN.items():
        written = [line.strip() for block in blocks_of(page) for line in block.lines]
        stale += [(page, start) for start in lines if not any(line.startswith(start) for line in written)]
    for page, scene in SCENES.items():
        blocks = blocks_of(page)
        stale += [
            (page, start) for start in (*scene.before, *scene.files) if not any(each.begins(start) for each in blocks)
        ]
    assert stale == []
    assert {*NOT_RUN, *SCENES, *ELSEWHERE} <= {*PAGES}


@pytest.fixture(scope="module")
def deployment() -> Iterator[dict[str, str]]:
    """What ``voiceassist-db dev`` gives to a shell."""
    with in_memory(), local_deployment() as environment:
        yield environment


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """The directory of the commands."""
    directory = Path(tempfile.mkdtemp(prefix="documentation-"))
    with quick_commands(directory) as found:
        yield found
    shutil.rmtree(directory)


@pytest.fixture
def session(
    request: pytest.FixtureRequest,
    deployment: dict[str, str],
    programs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Session]:
    """A reader's session with the page that the test is about, or to deploy, in a database of its own and with keys of its own."""
    params = getattr(request.node, "callspec", None)
    scene: Scene = SCENES[params.params["page"]] if params else DEPLOYED
    monkeypatch.setattr(normalisers, "_registered", {})
    path = f"secret/{secrets.token_hex(6)}"
    inherited = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    environment = (
        inherited | deployment | {"PATH": f"{programs}:{os.environ['PATH']}", "VOICEASSIST_DB_VAULT_PATH": path}
    )
    for variable in ROLES.values():
        environment[variable] = plain(make_url(deployment[variable]).set(database=DATABASE))
    with psycopg.connect(
        deployment["SUPERUSER_DATABASE_URL"].replace(f"/{NAME}", "/postgres"), autocommit=True
    ) as admin:
        template = "template0" if scene.is_empty else NAME
        admin.execute(f"CREATE DATABASE {DATABASE} TEMPLATE {template} STRATEGY file_copy".encode())
        (tmp_path / "folder").mkdir()
        made = Session(tmp_path / "folder", environment)
        if not scene.is_empty:
            made.as_superuser(f"{AT_HOME}; GRANT CREATE ON DATABASE {DATABASE} TO voiceassist_owner")
            copy_keys(VaultServer(deployment["VAULT_ADDR"], deployment["VAULT_TOKEN"]), path)
            made.run(Block("", 0, "sh", "voiceassist-db provision\n"))
        yield made
        made.close()
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)".encode())


def copy_keys(vault: VaultServer, path: str) -> None:
    """Give the session's place in the key store the keys of the deployment, under the name of its database."""
    keys = json.dumps(vault.ask("GET", "secret/data/voiceassist/encryption")["data"]["data"])
    mount, _, name = path.partition("/")
    vault.ask(
        "POST",
        f"{mount}/data/{name}",
        {"data": json.loads(keys.replace(f"{NAME} on", f"{DATABASE} on")), "options": {"cas": 0}},
    )


@wide
@pytest.mark.parametrize("page", list(SCENES))
def test_the_blocks_run_in_their_order(page: str, session: Session) -> None:
    """As a reader types them, from the first to the last, and with what their comments say."""
    scene, blocks = SCENES[page], blocks_of(page)
    scene.prepare(session)
    for block in blocks:
        for start, prepare in scene.before.items():
            if block.begins(start):
                prepare(session)
        file = next((file for start, file in scene.files.items() if block.begins(start)), None)
        if file is None:
            session.run(block)
        else:
            session.write(file, block.text)
    scene.after(session)


def steps_of_a_deployment() -> list[tuple[str, str]]:
    """Return each command of the quickstart's last table, in its order, with the variable of the role that it names."""
    table = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8").partition("## 6. Deploy it")[2]
    found = []
    for step, who in re.findall(r"^\| (.*) \| (.*) \|$", table, re.MULTILINE):
        commands = re.findall(r"`((?:voiceassist-db|alembic) [^`]+)`", step)
        roles = re.findall(r"a (superuser)|`voiceassist_(\w+)`", who)
        names = ["".join(each).replace("app", "application") for each in roles]
        found += [(command, ROLES[names[min(at, len(names) - 1)]]) for at, command in enumerate(commands)]
    return found


@wide
def test_the_steps_of_a_deployment_run_in_their_order(session: Session) -> None:
    """In an empty database, each as the role that the table names; the last but two says that all is safe."""
    steps = steps_of_a_deployment()
    assert [command.split()[1] for command, _ in steps] == [
        *("provision", "migrate", "upgrade", "provision", "init-keys", "check", "rotate", "retire")
    ]
    DEPLOYED.prepare(session)
    for command, variable in steps:
        session.run_sh(f"DATABASE_URL=${variable} {command}", "docs/quickstart.md")


@wide
def test_the_line_of_cron_runs_month_after_month(session: Session) -> None:
    """Each of its commands as the role of its address: what the rotator may do is not enough for a retirement."""
    page = (ROOT / "docs/rotation.md").read_text(encoding="utf-8")
    line = re.findall(r"^0 2 1 \* \* +cd /srv/clinic; (.*)$", page, re.MULTILINE)[0].replace(".venv/bin/", "")
    names = [name for name in session.environment if name in ROLES.values() or name.startswith("VAULT_")]
    exports = [f"export {name}={shlex.quote(session.environment[name])}\n" for name in names]
    DEPLOYED.prepare(session)
    session.write("rotation.env", "".join(exports))
    for command, variable in steps_of_a_deployment()[:-1]:
        session.run_sh(f"DATABASE_URL=${variable} {command}", "docs/quickstart.md")
    for month in (1, 2):
        session.run_sh(line, "docs/rotation.md")
        assert f"key version {month} is retired" in session.output
        assert f"key version {month + 1} → {month + 2}" in session.output
