"""Numbers that callers give, such as seconds and rates: each must be finite and in its range. Owns the check and its wording."""

from __future__ import annotations

import math


def require_number(
    name: str, value: float, *, least: float = 0.0, most: float = math.inf, is_open: bool = False
) -> None:
    """Refuse a number that is out of range. NaN and the infinities are out of every range.

    Args:
        name: Name of the argument, for the message.
        value: The number.
        least: The least number of the range.
        most: The greatest one.
        is_open: Whether the range begins behind ``least``.

    Raises:
        ValueError: It is out of range.
    """
    # A comparison with NaN is false.
    if (least < value if is_open else least <= value) and value <= most and value < math.inf:
        return
    limits = f"of more than {least:g}" if is_open else f"of at least {least:g}"
    if most < math.inf:
        limits = f"from {least:g} to {most:g}"
    raise ValueError(f"{name} must be a finite number {limits}")
