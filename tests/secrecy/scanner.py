"""Finds secrets in bytes, in every spelling that a log, a dump or a message could give them."""

from __future__ import annotations

import base64
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from urllib.parse import quote

WORD_BYTES = 8
LONG_BYTES = 2 * WORD_BYTES - 1
"""From this length on a needle, wherever it stands, covers one whole word of those that the data consists of."""

SHORT_BYTES = 5
"""Of shorter needles, those with the same beginning are looked for together at first."""

EXCERPT_BYTES = 60
_HEX = frozenset(b"0123456789abcdefABCDEF")


def spellings(secret: str | bytes) -> Iterator[tuple[str, bytes]]:
    """Give the forms in which a secret can be printed or stored, each with its name."""
    raw = secret.encode() if isinstance(secret, str) else secret
    yield "as it is", raw
    if isinstance(secret, str):
        yield "UTF-16", secret.encode("utf-16-le")
        yield "JSON", json.dumps(secret)[1:-1].encode()
        yield "repr", repr(secret)[1:-1].encode()
        yield "ASCII", ascii(secret)[1:-1].encode()
    yield "URL", quote(raw, safe="").encode()
    yield "repr of bytes", repr(raw)[2:-1].encode()
    yield "hex", raw.hex().encode()
    yield "upper-case hex", raw.hex().upper().encode()
    yield "hex dump", raw.hex(" ").upper().encode()
    octal = "".join(chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}" for byte in raw)
    yield "octal", octal.encode()
    yield "octal in a string", octal.replace("\\", r"\\").encode()
    # PostgreSQL prints the constants of its trees so, with the sign that the platform's char has.
    yield "signed bytes", " ".join(str(byte - 256 if byte > 127 else byte) for byte in raw).encode()
    yield "unsigned bytes", " ".join(map(str, raw)).encode()
    yield "list of bytes", str(list(raw))[1:-1].encode()
    for before in range(3):  # bytes that stand before it in the same base64 text
        bits = 8 * (before + len(raw))
        text = base64.b64encode(bytes(before) + raw)[-(-8 * before // 6) : bits // 6]
        yield f"base64 after {before}", text
        yield f"URL's base64 after {before}", text.translate(bytes.maketrans(b"+/", b"-_"))


class Scanner:
    """Looks for many secrets at once: 100 MB for thousands of needles in about a second.

    Args:
        secrets: The secrets by name.
    """

    def __init__(self, secrets: Mapping[str, str | bytes]) -> None:
        self._names: dict[bytes, str] = {}
        self._short: defaultdict[bytes, set[int]] = defaultdict(set)
        places: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
        for name, secret in secrets.items():
            for spelling, needle in spellings(secret):
                if needle in self._names:
                    continue
                self._names[needle] = f"{name}, {spelling}"
                if len(needle) < LONG_BYTES:
                    self._short[needle[:SHORT_BYTES]].add(len(needle))
                    continue
                for start in range(WORD_BYTES):
                    word = needle[start : start + WORD_BYTES]
                    places[int.from_bytes(word, sys.byteorder)].add((start, len(needle)))
        self._places = dict(places)
        self._words = frozenset(places)

    def hits(self, data: bytes) -> dict[str, str]:
        """Return the secrets that are in it by name and spelling, each with what stands around it."""
        found: dict[bytes, int] = {}
        known, words = self._words, memoryview(data)[: len(data) // WORD_BYTES * WORD_BYTES].cast("Q")
        for number in [number for number, word in enumerate(words) if word in known]:
            for start, length in self._places[words[number]]:
                at = number * WORD_BYTES - start
                if at >= 0 and (needle := data[at : at + length]) in self._names:
                    found[needle] = at
        for beginning, lengths in self._short.items():
            at = data.find(beginning)
            while at >= 0:
                for length in lengths:
                    if (needle := data[at : at + length]) in self._names and not _is_part(needle, at, data):
                        found[needle] = at
                at = data.find(beginning, at + 1)
        return {
            self._names[needle]: repr(data[max(0, at - EXCERPT_BYTES) : at + len(needle) + EXCERPT_BYTES])
            for needle, at in found.items()
        }


def _is_part(needle: bytes, at: int, data: bytes) -> bool:
    """Say whether nine digits are a part of a longer number, or of a ciphertext's hex."""
    around = data[max(0, at - 1) : at] + data[at + len(needle) : at + len(needle) + 1]
    return needle.isdigit() and not _HEX.isdisjoint(around)
