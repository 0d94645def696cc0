"""API keys: ``sk-`` + 32 random base62 characters (190 bits) + 6 characters of checksum.

The checksum (CRC-32 of all before it, in base62) tells a typo from an unknown key without a look-up; it protects nothing. Stores know the
SHA-256 of a key: with 190 random bits nothing slower is needed.
"""

from __future__ import annotations

import re
import secrets
from hashlib import sha256
from zlib import crc32

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "sk-"
RANDOM_CHARS = 32  # × log2(62) = 190.5 bits
CHECK_CHARS = 6  # 62⁶ > 2³²
HINT_CHARS = 4  # shown in lists; 24 bits of the checksum tell nothing about the rest
_SHAPE = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM_CHARS + CHECK_CHARS}}}", re.ASCII)


def new_key() -> str:
    """A fresh secret; the only time that anybody sees it."""
    body = PREFIX + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARS))
    return body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    """It has the shape and the checksum of a key of ours."""
    return _SHAPE.fullmatch(secret) is not None and _checksum(secret[:-CHECK_CHARS]) == secret[-CHECK_CHARS:]


def hash_of(secret: str) -> bytes:
    """32 bytes: what is stored and looked up. Any text has one."""
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()


def hint_of(secret: str) -> str:
    """The end of the secret, to recognise a key in a list."""
    return secret[-HINT_CHARS:]


def _checksum(text: str) -> str:
    number = crc32(text.encode())
    digits = []
    for _ in range(CHECK_CHARS):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
