"""What a report says of a library that does not do what it was asked."""

from __future__ import annotations

from typing import Final

LENGTH: Final = 200


def described(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    return f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:LENGTH]}"
