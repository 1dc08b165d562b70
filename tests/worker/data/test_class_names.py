"""Warnings about the names of classes."""

from __future__ import annotations

import pytest

from worker.data.class_names import odd_names


@pytest.mark.parametrize("names", [[], ["cat", "dog"], ["0", "1"], ["a b", "ab"]])
def test_plain_names_need_no_warning(names: list[str]) -> None:
    assert list(odd_names(names)) == []


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["caf\u00e9", "cafe\u0301"], ["'caf\\xe9'", "'cafe\\u0301'"]),
        (["Cat", "cat"], ["'Cat', 'cat' differ only in capitals"]),
        (["cat", "cat "], ["'cat'", "'cat '"]),
        (["a b", "a  b", "a\u00a0b"], ["'a b'", "'a  b'", "'a\\xa0b'"]),
        (["\uff11", "1"], ["'\\uff11'", "'1'"]),
        (["  ", "cat"], ["'  '", "only spaces"]),
        (["0", "--1", "x"], ["read as names", "'0'", "'--1', 'x'"]),
    ],
)
def test_what_is_odd_is_named(names: list[str], told: list[str]) -> None:
    message = "; ".join(odd_names(names))
    assert all(part in message for part in told)


def test_a_warning_names_a_few() -> None:
    (message,) = odd_names(["x", *map(str, range(100))])
    assert "'4' and 95 more" in message
