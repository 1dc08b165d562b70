"""Renames of weights."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.teachers.key_map import KeyMap


def key_map(*renames: tuple[str, str], **fields: Any) -> KeyMap:
    rename = [{"from": old, "to": new} for old, new in renames]
    return KeyMap.model_validate({"rename": rename, **fields})


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        (key_map(), "conv1.weight", "conv1.weight"),
        (key_map(strip=["module.", "encoder."]), "module.encoder.module.w", "module.w"),
        (key_map(drop=["optimizer."]), "optimizer.state", None),
        (key_map(drop=["optimizer."]), "my.optimizer.state", "my.optimizer.state"),
        (key_map(("fc.", "head.")), "fc.weight", "head.weight"),
        (key_map(("fc.", "head.")), "fc1.weight", "fc1.weight"),
        (key_map(("layer{i}.{j}.bn", "stages.{i-1}.{j}.norm")), "layer3.0.bn2.bias", "stages.2.0.norm2.bias"),
        (key_map(("layer{i}", "stages.{i+10}")), "layer12.w", "stages.22.w"),
        (key_map(("{i}.{j}.", "{j}.{i}.")), "007.1.w", "1.7.w"),
        (key_map(("a.", "first."), ("a.b.", "second.")), "a.b.w", "first.b.w"),
        (key_map(("a.b.", "second."), ("a.", "first.")), "a.b.w", "second.w"),
        (key_map(("a+(b)*[c]", "x")), "a+(b)*[c].w", "x.w"),
        (key_map(("x", "y"), strip=["m."], drop=["x.gone"]), "m.x.gone", None),
    ],
)
def test_a_name_is_stripped_dropped_and_renamed_in_that_order(given: KeyMap, name: str, expected: str | None) -> None:
    assert given.name(name) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "x"),
        ("{}", "x"),
        ("{ij}", "x"),
        ("a{", "x"),
        ("{i+1}", "x"),
        ("{i}.{i}", "x"),
        ("{i}{j}", "x"),
        ("a", "{i}"),
        ("a\n", "x"),
    ],
)
def test_a_template_that_means_nothing_is_refused(old: str, new: str) -> None:
    with pytest.raises(ValidationError):
        key_map((old, new))


def test_a_number_below_zero_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"negative for 'layer0.w'"):
        key_map(("layer{i}", "stages.{i-1}")).name("layer0.w")


def test_two_names_that_become_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a\.w' and 'b\.w' both become 'x\.w'"):
        key_map(("a.", "x."), ("b.", "x.")).apply(["a.w", "b.w"])


def test_names_are_mapped_back_to_where_their_tensors_lie() -> None:
    mapped = key_map(("a.", "x."), drop=["b."], strip=["m."]).apply(["m.a.w", "m.b.w", "c"])
    assert mapped == {"x.w": "m.a.w", "c": "c"}


def test_it_survives_json_under_the_names_that_clients_use() -> None:
    given = key_map(("a{i}", "b{i}"), strip=["module."])
    assert '"from":"a{i}","to":"b{i}"' in given.model_dump_json()
    assert KeyMap.model_validate_json(given.model_dump_json()) == given


@pytest.mark.timeout(30)
def test_no_template_makes_matching_slow() -> None:
    template = "".join(f"{{{letter}}}." for letter in "abcdefghijklmnopqrst")
    name = "1." * 10 + "1" * 10_000
    assert key_map((template + "!", "x")).name(name) == name
