"""API keys: `still_`, 40 random characters, and a checksum that distinguishes a mistyped key from an unknown one."""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib

PREFIX = "still_"
RANDOM_CHARACTERS = 40
CHECKSUM_CHARACTERS = 6
HINT_CHARACTERS = len(PREFIX) + 4
_ALPHABET = string.digits + string.ascii_letters
_FORM = re.compile(f"{PREFIX}([0-9A-Za-z]{{{RANDOM_CHARACTERS}}})([0-9A-Za-z]{{{CHECKSUM_CHARACTERS}}})")


def new_key() -> str:
    """A new key with 238 random bits."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_CHARACTERS))
    return PREFIX + body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """Whether a key has the right format and checksum. Secret scanners can use the same check."""
    match = _FORM.fullmatch(key)
    return match is not None and match[2] == _checksum(match[1])


def digest(key: str, secret: bytes) -> str:
    """Stored digest of a key: HMAC-SHA256, without salt or slow hashing, since keys can't be guessed."""
    return hmac.digest(secret, key.encode(), "sha256").hex()


def _checksum(body: str) -> str:
    """CRC-32 in base 62."""
    rest, digits = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM_CHARACTERS):
        rest, digit = divmod(rest, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
