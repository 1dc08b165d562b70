"""Prefixed ids that sort by creation time: 48 bits of milliseconds, then 80 random bits, in base 32."""

from __future__ import annotations

import secrets
import time
from typing import Literal

Prefix = Literal["job", "file", "upload", "model", "key", "proj", "ckpt", "art", "req"]
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_BITS = 130


def new_id(prefix: Prefix) -> str:
    """Return an id such as `job_01k9…`: 26 digits after the prefix, later ids sort after earlier ones."""
    value = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join([_PAIRS[value >> shift & 1023] for shift in range(_BITS - 10, -1, -10)])
