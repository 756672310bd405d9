"""What is accepted comes back equal and of the same type, whatever happens to it; what is not is refused, and nothing is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

import pytest

from tests.roundtrip.life import SETTINGS, STEPS, Size, live
from tests.roundtrip.tables import SHAPES
from tests.roundtrip.trial import Trial

NewTrial = Callable[..., Trial]
Copied = Callable[[Trial], None]

EVERY_TYPE = next(each for each in SHAPES if len(each.key) > 3)
OTHERS = [each for each in SHAPES if each is not EVERY_TYPE]
PARTS = range(len(SETTINGS))
"""A part has settings of its own; the table whose key has every type; and a fourth of the others."""

LONG_VALUES = 25_000
"""Values that one part of the long form writes: 100,000 in all four."""


@pytest.mark.wide
def test_a_key_of_every_type(new_trial: NewTrial, copied: Copied) -> None:
    """The life of a table whose key has a column of each type, and of the patients, is compared with the oracle."""
    trial = new_trial(seed=1, alternates=True, stride=8)
    live(trial, Size([EVERY_TYPE], compared=STEPS[1::4]), SETTINGS[1], copied)
    assert trial.written() > 500


@pytest.mark.wide
@pytest.mark.parametrize("part", PARTS)
def test_every_shape_of_key(new_trial: NewTrial, copied: Copied, part: int) -> None:
    """The same for every type and shape of key, under every group of settings."""
    trial = new_trial(seed=part, alternates=True, stride=5)
    size = Size([EVERY_TYPE, *OTHERS[part :: len(PARTS)]], compared=[STEPS[1], STEPS[2], *STEPS[4:]])
    live(trial, size, SETTINGS[part], copied)
    assert trial.written() > 4_000


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_a_hundred_thousand_values(new_trial: NewTrial, copied: Copied, part: int) -> None:
    """The same for 100,000 values, each step in both ways; a failure shows the seed, and the figures are printed."""
    seed = int(os.environ.get("VOICEASSIST_DB_TEST_SEED", secrets.randbelow(1 << 32)))
    print(f"VOICEASSIST_DB_TEST_SEED={seed}")
    trial = new_trial(seed=seed, alternates=False, stride=1)
    size = Size([EVERY_TYPE, *OTHERS[part :: len(PARTS)]], rows=40, patients=400, share=0.2)
    live(trial, size, SETTINGS[part], copied)
    print(trial.figures())
    assert trial.written() >= LONG_VALUES
