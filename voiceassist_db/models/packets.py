"""What the first bytes of a stored OpenPGP message say about it: whether it is one, and which cipher it names.

Owns the SQL condition. It needs no key, so that whoever may read ciphertext can ask it. Everything in it is named by schema.

Byte layout (RFC 9580): ``c3`` (``8c`` of the older header, as ``gpg`` writes it) symmetric-key packet, one byte of length, ``04`` its
version, then its cipher: ``01`` IDEA, ``02`` Triple-DES, ``03`` CAST5, ``04`` Blowfish, ``07`` to ``09`` AES, ``0a`` Twofish. A longer
packet holds a session key, and so may hide another cipher of the data. Then ``d2``: data with an integrity check, ``c9``: without.

A server with CVE-2026-14663 stores the data of a cipher that its OpenSSL lacks as it is. Its first bytes then show it: the last two of the
random block, once more, and the header of a packet of literal (``cb``) or compressed (``c8``) data.
"""

from __future__ import annotations

from typing import Final

CVE: Final = "CVE-2026-14663"

NO_MESSAGE: Final = "no message"
NO_INTEGRITY: Final = "no integrity check"
READABLE: Final = "readable"
CIPHERS: Final = {
    1: "IDEA",
    2: "Triple-DES",
    3: "CAST5",
    4: "Blowfish",
    10: "Twofish",
}
"""Symmetric ciphers of RFC 9580, section 9.3, but for AES."""
UNKNOWN: Final = "an unknown cipher"

WEAK: Final = (READABLE, *CIPHERS.values(), UNKNOWN)
"""What makes a value one that must be rotated before the server is updated; the others cannot be adopted at all."""

_LENGTH: Final = "(?:[0-9ab].|[cd]...|e.|f[0-9a-e]|ff.{8})"
"""A packet's length in hexadecimal digits: of one, two or five bytes, or of a part."""
_READABLE: Final = f"^d2{_LENGTH}01(?:.{{12}}|.{{28}})(....)\\1c[8b]"
"""Of a cipher with blocks of 8 bytes, or 16."""


def weakness(column: str) -> str:
    """Return the SQL expression of what is wrong with a stored message, one of the names above; NULL where nothing is, or no value.

    Args:
        column: The column, quoted where it must be.
    """
    first = _bytes(column, 1, 1)
    # The length is below 192 in every message that pgcrypto or gpg writes, so that it has one byte.
    data = f"pg_catalog.get_byte({column}, 1) OPERATOR(pg_catalog.+) 3"
    body = f"pg_catalog.encode({_bytes(column, data, 40)}, 'hex')"
    named = " ".join(
        f"WHEN {_is(_bytes(column, 4, 1), f'{number:02x}')} THEN '{name}'" for number, name in CIPHERS.items()
    )
    return f"""CASE WHEN {column} IS NULL THEN NULL
        WHEN {_is(first, "c3", "8c")} AND pg_catalog.octet_length({column}) OPERATOR(pg_catalog.>) 4 THEN CASE
            WHEN pg_catalog.get_byte({column}, 1) OPERATOR(pg_catalog.>) 191 OR NOT {_is(_bytes(column, 3, 1), "04")}
                THEN '{NO_MESSAGE}'
            WHEN {_is(_bytes(column, data, 1), "c9", "a4", "a5", "a6", "a7")} THEN '{NO_INTEGRITY}'
            WHEN NOT {_is(_bytes(column, data, 1), "d2")} THEN '{NO_MESSAGE}'
            WHEN {_is(_bytes(column, 4, 1), "07", "08", "09")} AND pg_catalog.get_byte({column}, 1) OPERATOR(pg_catalog.<) 14 THEN NULL
            WHEN {body} OPERATOR(pg_catalog.~) '{_READABLE}' THEN '{READABLE}'
            WHEN {_is(_bytes(column, 4, 1), "07", "08", "09")} THEN NULL
            {named} ELSE '{UNKNOWN}' END
        ELSE '{NO_MESSAGE}' END"""


def _bytes(column: str, start: int | str, count: int) -> str:
    return f"pg_catalog.substring({column}, {start}, {count})"


def _is(value: str, *hexadecimal: str) -> str:
    among = ", ".join(rf"'\x{each}'" for each in hexadecimal)
    return f"{value} OPERATOR(pg_catalog.=) ANY (CAST(ARRAY[{among}] AS pg_catalog.bytea[]))"


def described(name: str) -> str:
    """Return what a name of :func:`weakness` says of a value, to stand after "the value"."""
    if name == NO_MESSAGE:
        return "is no password-encrypted OpenPGP message"
    if name == NO_INTEGRITY:
        return "has no integrity check, so that anybody can change it unnoticed"
    if name == READABLE:
        return f"can be read without any key, as {CVE} leaves data under Blowfish or CAST5: rotate before you update the server"
    return f"is under {name}, which an updated server may not open ({CVE}): rotate before you update the server"
