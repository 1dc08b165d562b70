"""Job documents: numbers as people write them, one value per key, and overrides."""

from __future__ import annotations

import pytest

from app.recipe.documents import DocumentError, override, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e4", 50_000.0),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("0", 0),
        ("-7", -7),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, 2e0]", [1, 2.0]),
        ('"1e-3"', "1e-3"),
    ],
)
def test_reads_numbers_and_words_as_json_does(text: str, value: object) -> None:
    read = parse(f"key: {text}")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["no", "on", "010", "1_000", "1:30", "2024-01-01", "0x10", ".inf", "1e", "e5"])
def test_leaves_alone_what_only_old_yaml_takes_for_something_else(text: str) -> None:
    assert parse(f"key: {text}")["key"] == text


def test_reads_json() -> None:
    assert parse('{"data": {"train": "a.npz"}, "losses": [{"weight": 1e-3}]}') == {
        "data": {"train": "a.npz"},
        "losses": [{"weight": 0.001}],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "line 2: 'c' stands twice"),
        ("a: [", "line 1"),
        ("- 1", "not list"),
        ("", "not NoneType"),
        ("a: !!python/object/apply:os.getcwd []", "python/object"),
        ("a: &it [*it]", "aliases"),
        ("1: 2", "a key must be text"),
        ("? [1]\n: 2", "a key must be text"),
        ("a: \x00", "not YAML"),
    ],
)
def test_an_invalid_document_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(DocumentError, match=said.replace("[", r"\[")):
        parse(text)


def test_overrides_one_value_and_leaves_the_rest_and_the_original_alone() -> None:
    document = {"recipe": {"losses": [{"kind": "kd"}, {"kind": "nkd", "weight": 1}], "epochs": 3}}
    changed = override(document, "recipe.losses[1].weight=1e-3")
    assert changed == {"recipe": {"losses": [{"kind": "kd"}, {"kind": "nkd", "weight": 0.001}], "epochs": 3}}
    assert document["recipe"]["losses"][1] == {"kind": "nkd", "weight": 1}


def test_override_makes_missing_mappings_and_reads_whole_structures() -> None:
    assert override({"teacher": None}, "teacher.model=model_1") == {"teacher": {"model": "model_1"}}
    assert override({}, "student={architecture: mlp, hidden: [8]}") == {
        "student": {"architecture": "mlp", "hidden": [8]}
    }
    assert override({"name": "a"}, "name=x=y") == {"name": "x=y"}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("name", "key.path=value"),
        ("=1", "key.path=value"),
        ("a..b=1", "key.path=value"),
        ("losses[2].weight=1", "not an index of a list with 1 items"),
        ("losses.x=1", "not an index"),
        ("epochs.x=1", "under a plain value"),
        ("epochs=[", "not YAML"),
    ],
)
def test_refuses_an_override_that_leads_nowhere(assignment: str, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        override({"losses": [{"kind": "kd"}], "epochs": 3}, assignment)
