"""The messages between supervisor and trainer."""

from __future__ import annotations

import pytest

from worker.protocol import MAX_TEXT, REPORTS, Failed, Log, Message
from worker.supervisor.trainer_process import LINE_BYTES


@pytest.mark.parametrize("text", ["n" * 10_000_000, "名" * 10_000_000, "\0" * 10_000_000], ids=["a", "wide", "escaped"])
@pytest.mark.parametrize("kind", [Log, Failed])
def test_no_text_makes_a_line_too_long(kind: type[Message], text: str) -> None:
    given = {"message": text, "fault": "user", "code": "invalid_data", "param": text}
    line = kind.model_validate(given).model_dump_json()
    assert len(line.encode()) < LINE_BYTES
    again = REPORTS.validate_json(line)
    assert isinstance(again, Log | Failed)
    assert len(again.message) <= MAX_TEXT
    assert again.message.endswith("more characters")


def test_short_texts_stay_as_they_are_and_halves_of_pairs_can_be_sent() -> None:
    assert Log(message="naïve").message == "naïve"
    assert Log(message="a\ud800b").model_dump_json() == Log(message="a\\ud800b").model_dump_json()
