"""Where a teacher may come from."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.teachers.teacher import Outside, Teacher

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {"hub": "google/vit", "revision": COMMIT}


@pytest.mark.parametrize(
    ("document", "source", "reference"),
    [
        ({"model": "model_1"}, "model", "model_1"),
        (HUB, "hub", f"google/vit@{COMMIT}"),
        ({"uri": "s3://bucket/teachers/bert/"}, "uri", "s3://bucket/teachers/bert"),
        ({"uri": "file:///models/bert"}, "uri", "file:///models/bert"),
    ],
)
def test_a_teacher_is_known_by_where_it_comes_from(document: dict[str, Any], source: str, reference: str) -> None:
    teacher = Teacher.model_validate(document)
    assert (teacher.source, teacher.reference) == (source, reference)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"model": "model_1", **HUB},
        {"hub": "google/vit"},
        {"model": "model_1", "revision": COMMIT},
        {"hub": "google/vit", "revision": "main"},
        {"hub": "google/vit", "revision": COMMIT[:8]},
        {"hub": "vit", "revision": COMMIT},
        {"hub": "../vit", "revision": COMMIT},
        {"hub": "google/vit/extra", "revision": COMMIT},
        {"hub": "google/vit?x=1", "revision": COMMIT},
        {"uri": "http://169.254.169.254/latest"},
        {"uri": "s3://bucket/a/../b"},
        {"uri": "s3://bucket//a"},
        {"uri": "s3://bucket/a%2e%2e"},
        {"uri": "s3://user@bucket/a"},
        {"uri": "s3://"},
    ],
)
def test_what_names_no_one_place_for_good_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Teacher.model_validate(document)


@pytest.mark.parametrize(
    ("uri", "accepted"),
    [
        ("s3://bucket/teachers", True),
        ("s3://bucket/teachers/bert", True),
        ("s3://bucket/teachers-of-others/bert", False),
        ("s3://bucket", False),
        ("s3://other/teachers/bert", False),
        ("gs://bucket/teachers/bert", False),
    ],
)
@pytest.mark.parametrize("prefix", ["s3://bucket/teachers", "s3://bucket/teachers/"])
def test_a_uri_must_lie_below_an_accepted_prefix(uri: str, accepted: bool, prefix: str) -> None:
    wrong = list(Outside(prefixes=(prefix,)).wrong(Teacher(uri=uri)))
    assert [field for field, *_ in wrong] == ([] if accepted else ["uri"])


def test_nothing_from_outside_is_accepted_unless_it_is_allowed() -> None:
    assert [field for field, *_ in Outside().wrong(Teacher.model_validate(HUB))] == ["hub"]
    assert [field for field, *_ in Outside().wrong(Teacher(uri="s3://bucket/a"))] == ["uri"]
    assert list(Outside(hub=True).wrong(Teacher.model_validate(HUB))) == []
    assert list(Outside().wrong(Teacher(model="model_1"))) == []
