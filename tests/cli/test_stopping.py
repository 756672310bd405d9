"""How a signal stops a command: in whichever moment a second one comes."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Final

import pytest

from voiceassist_db.cli.stopping import stopping

EVERYWHERE: Final = """
import signal
import sys
import threading

from voiceassist_db.cli.output import say
from voiceassist_db.cli.stopping import stopping
from voiceassist_db.cli.streams import make_tolerant

make_tolerant()
BOTH = (signal.SIGINT, signal.SIGTERM)
ended = []
for each in BOTH:
    signal.signal(each, lambda number, _: ended.append(number))


def interrupted_at(line, second):
    # Sends the second signal before the n-th line that runs because of the first one, and says whether there was such a line.
    left = line

    def trace(*_):
        nonlocal left
        left -= 1
        if left == 0:
            signal.raise_signal(second)
        return trace

    with stopping() as stop:
        sys.settrace(trace)
        signal.raise_signal(signal.SIGINT)
        sys.settrace(None)
        assert stop.is_set()
    return left <= 0


for second in BOTH:
    line = 1
    while interrupted_at(line, second):
        line += 1
    assert line > 10, line
assert ended, "a second signal did not end anything"
say("each line was interrupted")
"""


def test_a_second_signal_may_come_at_any_moment() -> None:
    """Within the handler of the first one too: no lock may be taken there, or the command waits for itself for ever.

    In a process of its own, which can be ended.
    """
    done = subprocess.run([sys.executable, "-c", EVERYWHERE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "each line was interrupted\n"), done.stderr[-2000:]
    assert "stopping after the batches that are under way" in done.stderr


def test_nothing_waits_for_it() -> None:
    """A wait would last for ever, so it is refused."""
    with stopping() as stop:
        assert isinstance(stop, threading.Event)
        with pytest.raises(NotImplementedError):
            stop.wait(0.1)
