"""Tracebacks that keep their lines and lose their local variables, of which tools that report errors would send values and keys."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def forget_locals(error: BaseException, *, ambient: BaseException | None = None) -> None:
    """Clear the local variables of every frame that an exception has passed through so far, and of those that hang on it.

    Frames that still run, the caller's and those above it, keep theirs.

    Args:
        error: The exception.
        ambient: What the caller handled before. It keeps its frames as they are, and so does what hangs on it alone.
    """
    seen: set[int] = set() if ambient is None else {id(ambient)}
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            todo += [each.__cause__, each.__context__]


def forgetful(function: Callable[P, T]) -> Callable[P, T]:
    """Let exceptions leave a function without its local variables, its arguments and those of all that it called."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            forget_locals(error)
            del args, kwargs
            raise

    return call
