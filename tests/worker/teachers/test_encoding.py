"""Encoding and decoding of teacher outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.teachers.cache import DenseCache, TopKCache
from worker.errors import UserError
from worker.teachers.encoding import Encoding, build_encoding

CLASSES = 10


def logits(rows: int = 6, classes: int = CLASSES, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(1)) * scale


def again(encoding: Encoding, outputs: Tensor) -> Tensor:
    return encoding.decode(encoding.encode(outputs))


def test_dense_fp32_loses_nothing() -> None:
    outputs = logits()
    assert torch.equal(again(build_encoding(DenseCache(), CLASSES), outputs), outputs)


@pytest.mark.parametrize(("dtype", "bits"), [("fp16", 11), ("bf16", 8)])
def test_sixteen_bits_round_to_their_significant_bits(dtype: str, bits: int) -> None:
    outputs = logits()
    encoding = build_encoding(DenseCache.model_validate({"store": "dense", "dtype": dtype}), CLASSES)
    assert encoding.encode(outputs)["logits"].dtype.itemsize == 2
    error = ((again(encoding, outputs) - outputs) / outputs).abs().max()
    assert 0.0 < error <= 2.0**-bits


def test_fp16_refuses_a_number_that_it_cannot_hold_and_bf16_takes_it() -> None:
    prices = torch.tensor([[312_000.0, 5.0]])
    with pytest.raises(UserError, match="312000") as refused:
        build_encoding(DenseCache(dtype="fp16"), 2).encode(prices)
    assert refused.value.param == "teacher_cache.dtype"
    assert again(build_encoding(DenseCache(dtype="bf16"), 2), prices)[0, 0] == pytest.approx(312_000, rel=2**-8)


@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_top_k_of_all_classes_equals_dense(scale: float) -> None:
    outputs = logits(scale=scale)
    encoding = build_encoding(TopKCache(k=CLASSES), CLASSES)
    assert torch.equal(again(encoding, outputs), outputs)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_top_k_keeps_the_probabilities_of_its_classes_and_the_mass_of_the_others(k: int) -> None:
    outputs = logits()
    made = again(build_encoding(TopKCache(k=k), CLASSES), outputs)
    exact, found = outputs.double().softmax(1), made.double().softmax(1)
    chosen = outputs.topk(k, dim=1).indices
    torch.testing.assert_close(found.gather(1, chosen), exact.gather(1, chosen), rtol=1e-6, atol=0.0)
    others = torch.ones_like(outputs, dtype=torch.bool).scatter(1, chosen, False)
    rest = found[others].view(-1, CLASSES - k)
    torch.testing.assert_close(rest.sum(1), exact[others].view(-1, CLASSES - k).sum(1), rtol=1e-5, atol=0.0)
    assert torch.equal(rest, rest[:, :1].expand_as(rest))


def test_top_k_of_extreme_logits_is_finite() -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0, -1e4]])
    made = again(build_encoding(TopKCache(k=1), 4), outputs)
    assert made.isfinite().all()
    assert made[0, 0] == 1e4


def test_a_masked_class_keeps_probability_zero() -> None:
    outputs = torch.tensor([[2.0, 1.0, -torch.inf, -torch.inf]])
    made = again(build_encoding(TopKCache(k=2), 4), outputs)
    assert torch.equal(made, outputs)


@pytest.mark.parametrize("classes", [100, 40_000])
def test_the_last_class_of_many_is_found_again(classes: int) -> None:
    outputs = torch.zeros(1, classes)
    outputs[0, -1] = 9.0
    assert again(build_encoding(TopKCache(k=2), classes), outputs).argmax() == classes - 1


def test_more_logits_than_classes_are_refused() -> None:
    with pytest.raises(UserError, match="at most 10") as refused:
        build_encoding(TopKCache(k=11), CLASSES)
    assert refused.value.param == "teacher_cache.k"


@pytest.mark.parametrize("spec", [DenseCache(), TopKCache(k=CLASSES)], ids=["dense", "top-k"])
def test_logits_of_every_token_are_decoded_in_their_places(spec: DenseCache | TopKCache) -> None:
    outputs = logits(rows=12).view(3, 4, CLASSES)
    encoding = build_encoding(spec, CLASSES, tokens=4, hidden=False)
    columns = encoding.encode(outputs)
    assert {name: column.shape[1] for name, column in columns.items()} == {
        name: column.width for name, column in encoding.columns.items()
    }
    assert torch.equal(encoding.decode(columns), outputs)
    assert torch.equal(encoding.decode({name: column[1:2] for name, column in columns.items()}), outputs[1:2])
