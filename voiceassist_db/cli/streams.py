"""The standard streams of a command's process. Writing to them never fails, so output never decides a command's result.

Owns what happens where a stream is closed, full or gone, and where it cannot encode a character. Formats nothing.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2

_PLAIN: Final = {"→": "->", "…": "...", "▸": ">", "•": "*"}
"""How signs of our own are written where the encoding lacks them."""

_ERRORS: Final = "voiceassist_db.plain"

_NOBODY_READS: Final = (errno.EPIPE, errno.EBADF)
"""Whoever closed the stream does not miss what is written to it."""


class _Tolerant(io.RawIOBase):
    """A file descriptor that drops what it cannot write.

    It has no buffer, so nothing is left to fail when the process ends, and a signal's handler may write in the midst of a write.

    Args:
        descriptor: The file descriptor, which is never closed here.
        on_loss: Called with the first error, where somebody may miss what was dropped.
    """

    def __init__(self, descriptor: int, on_loss: Callable[[OSError], None]) -> None:
        self._descriptor = descriptor
        self._on_loss: Callable[[OSError], None] | None = on_loss

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Say whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Say yes: it takes everything."""
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all data, or drop what cannot be written; return the number of bytes."""
        given = memoryview(data).cast("B")
        try:
            self._write_all(given)
        except OSError as error:
            report, self._on_loss = self._on_loss, None
            if report is not None and error.errno not in _NOBODY_READS:
                report(error)
        return len(given)

    def _write_all(self, left: memoryview) -> None:
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another process that has this terminal or pipe made it non-blocking
                select.select([], [self._descriptor], [])


def make_tolerant() -> None:
    """Replace the standard streams of this process by ones that never fail.

    A descriptor that is closed becomes the null device: otherwise the connection to the database might get its number, and
    messages would be written into it.
    """
    for descriptor in (_STDIN, _STDOUT, _STDERR):
        _fill(descriptor)
    if sys.stdin is None:
        sys.stdin = os.fdopen(_STDIN, closefd=False)
    codecs.register_error(_ERRORS, _plain)
    sys.stderr = _stream(_STDERR, sys.stderr, lambda _: None)  # where it fails, nobody can be told
    sys.stdout = _stream(_STDOUT, sys.stdout, _say_stdout_failed)


def _fill(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        # The lowest number that is free is this one.
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _stream(descriptor: int, before: TextIO | None, on_loss: Callable[[OSError], None]) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    raw = _Tolerant(descriptor, on_loss)
    # A TextIOWrapper needs no buffer below it, as `python -u` shows; its type says otherwise.
    return io.TextIOWrapper(raw, encoding=encoding, errors=_ERRORS, newline="\n", write_through=True)  # type: ignore[type-var]


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that the encoding lacks, as an error handler of ``codecs``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    shown = (_PLAIN.get(each) or each.encode("ascii", "backslashreplace").decode("ascii") for each in missing)
    return "".join(shown), error.end


def _say_stdout_failed(error: OSError) -> None:
    sys.stderr.write(f"standard output could not be written: {os.strerror(error.errno or 0)}. The command goes on.\n")
