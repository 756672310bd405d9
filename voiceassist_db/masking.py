"""What an object that holds a secret shows of itself: the name of its type.

Owns the base of all such objects, the wrapper of one string, an attribute that is wrapped so, and
parameters of a statement. Knows nothing of what they hold.
"""

from __future__ import annotations

from typing import Any, NoReturn


class Opaque:
    """Base of objects that hold a secret: a program can use them, and no tool can print, copy or pickle them.

    ``rich.inspect``, debuggers and completion show the value of each name that ``dir`` lists, so ``dir`` lists methods only.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(•••)"

    def __str__(self) -> str:
        return repr(self)

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __dir__(self) -> list[str]:
        return [name for name in dir(type(self)) if callable(getattr(type(self), name, None))]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: it holds a secret. Make a new one instead."
        )

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has no state to show: it holds a secret")


class Masked(Opaque):
    """A string that shows itself only by its attribute.

    Attributes:
        value: The string.
    """

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "•••"


class MaskedValues(dict[str, Any]):
    """The parameters of a statement that writes patients' values: instrumentation of the driver records their ``str``.

    Still a dict that a tool can walk through, because the driver does so itself.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "MaskedValues(•••)"


class Credential:
    """An attribute that is a password or a token: a program reads it as a string, and ``vars`` of its object shows a mask."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: object, owner: type) -> str:
        masked: Masked = getattr(instance, self._name)
        return masked.value

    def __set__(self, instance: object, value: str) -> None:
        setattr(instance, self._name, Masked(value))
