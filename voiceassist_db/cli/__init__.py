"""The command ``voiceassist-db``: the composition root, where settings, keys, database and output meet.

Owns the list of commands and the translation of errors into messages and exit codes. Each command is a module of its own,
imported only when it is called, so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Final

import click

from voiceassist_db.cli.explaining import Group
from voiceassist_db.cli.output import VisibleFormatter, say, say_crash, say_error
from voiceassist_db.cli.streams import make_tolerant
from voiceassist_db.errors import VoiceAssistDBError
from voiceassist_db.escaping import escaped

_COMMANDS: Final = {
    "check": "Check whether keys and patients' values are safe from logs, wires and other roles.",
    "demo": "Show everything on servers of its own: import, read, search, rotate the key, verify.",
    "dev": "Run a command or a shell with PostgreSQL and OpenBao up, migrated, and the environment set.",
    "import": "Import patients from a CSV file.",
    "init-keys": "Create the first keys in Vault, if there are none, and register them in the database.",
    "migrate": "Create this package's tables, or bring them up to date.",
    "provision": "Create the roles of a deployment with their rights and settings, or print the SQL.",
    "retire": "End the previous key version, which no row needs any more.",
    "rotate": "Rotate the encryption key, or the key of the blind indexes, while the application runs.",
    "status": "Show key versions, rows per version, and rotations.",
    "verify": "Check that every encrypted value opens, is bound to its row, and has the right format.",
}
"""Commands and their one-line help; the module of ``init-keys`` is ``cli.init_keys_command``."""


class _LazyGroup(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}_command")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="voiceassist-db")
def cli() -> None:
    """Encrypted patient data on PostgreSQL: keys in Vault, ciphertext by pgcrypto, keys rotated online.

    The database is named by DATABASE_URL; the keys by VAULT_ADDR with VAULT_TOKEN, VAULT_TOKEN_FILE, or another login that
    README.md lists. `voiceassist-db dev` gives you both to try.
    """


def run(command: click.Command) -> None:
    """Run a command as the process: our errors become one line on standard error and exit code 1."""
    make_tolerant()
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(VisibleFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    sys.excepthook = say_crash
    try:
        code = command.main(standalone_mode=False)
    except VoiceAssistDBError as error:
        say_error(error)
        sys.exit(1)
    except click.ClickException as error:
        # The names of files are chosen by a shell's wildcard too.
        error.message = escaped(error.message)  # type: ignore[misc]  # for type checkers only; click reads it when it shows it
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        say("Aborted!", err=True)
        sys.exit(1)
    sys.exit(code)


def main() -> None:
    """Run ``voiceassist-db``."""
    run(cli)
