"""The form of API keys."""

from __future__ import annotations

import string

import pytest

from app.projects import keys


def test_a_new_key_is_well_formed_and_never_the_same() -> None:
    made = {keys.new_key() for _ in range(200)}
    assert len(made) == 200
    assert all(keys.is_well_formed(key) and len(key) == 52 for key in made)


def test_any_single_wrong_character_is_noticed() -> None:
    key = keys.new_key()
    for place in range(len(key)):
        wrong = next(letter for letter in string.ascii_letters if letter != key[place])
        assert not keys.is_well_formed(key[:place] + wrong + key[place + 1 :])


@pytest.mark.parametrize("text", ["", "still_", "still_" + "a" * 46, "sk-something", "still_" + "ä" * 46])
def test_other_text_is_not_a_key(text: str) -> None:
    assert not keys.is_well_formed(text)


def test_the_digest_depends_on_the_servers_secret() -> None:
    key = keys.new_key()
    assert keys.digest(key, b"one") == keys.digest(key, b"one") != keys.digest(key, b"other")
