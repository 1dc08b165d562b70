"""The network of a dual encoder: its logits, their gradient, the vectors of labels, and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.students.architectures import DualEncoder, Transformers
from app.recipe.students.model import ModelConfig, TextInput
from tests.worker.live_memory import peak_bytes
from worker.students import dual_encoder
from worker.students.dual_encoder import DualEncoderNetwork, build
from worker.students.model import Model, last_layer
from worker.teachers.class_alignment import take_classes

CALM: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT: dict[str, Any] = {
    **{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 8, "max_position_embeddings": 16, **CALM},
}
LABELS = torch.tensor([[2, 3, 4, 0, 0], [2, 4, 0, 0, 0], [5, 6, 7, 8, 9], [5, 1, 0, 0, 0], [9, 9, 9, 0, 0]])
TEXTS = torch.tensor([[2, 3, 4, 5, 6, 0], [9, 8, 0, 0, 0, 0], [5, 6, 7, 8, 9, 1]])


def described(classes: int = 5, **settings: Any) -> ModelConfig:
    encoder = Transformers(config={**BERT, **settings})
    return ModelConfig(
        task="multi-label-classification",
        architecture=DualEncoder(encoder=encoder, pooling="mean", temperature=0.1),
        input=TextInput(length=8, vocabulary=50, pad=0),
        classes=classes,
    )


def network_of(classes: int = 5, **settings: Any) -> DualEncoderNetwork:
    torch.manual_seed(0)
    config = described(classes, **settings)
    assert isinstance(config.architecture, DualEncoder)
    return build(config.architecture, config.input, classes)


def gradients(network: DualEncoderNetwork, logits: Tensor) -> list[Tensor]:
    loss = (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()
    return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("at_once", [1, 2, 256])
def test_logits_are_cosines_with_labels_that_were_encoded_alone(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(dual_encoder, "LABELS_AT_ONCE", at_once)
    network = network_of()
    network.read_labels(LABELS, pad=0)
    found = network.train()(TEXTS)
    texts, labels = (
        F.normalize(torch.cat([network.encoder(row[row != 0].unsqueeze(0)) for row in rows]), dim=-1)
        for rows in (TEXTS, LABELS)
    )
    expected = texts @ labels.T / 0.1
    torch.testing.assert_close(found, expected)
    for ours, plain in zip(gradients(network, found), gradients(network, expected), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_in_evaluation_labels_are_encoded_once_for_the_weights_there_are() -> None:
    network, calls = network_of(), list[int]()
    network.encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    network.read_labels(LABELS, pad=0)
    with torch.inference_mode():
        first = network.eval()(TEXTS)
        assert torch.equal(network(TEXTS), first)
    assert calls == [5, 3, 3]
    assert first.requires_grad is False
    with torch.no_grad():
        for parameter in network.train().parameters():
            parameter.mul_(1.5)
        changed = network.eval()(TEXTS)
        torch.testing.assert_close(changed, network.train()(TEXTS))
    assert not torch.allclose(changed, first)


def test_vectors_alone_are_kept_in_the_end() -> None:
    network = network_of()
    assert set(network.state_dict()) == {"labels", *(f"encoder.{name}" for name in network.encoder.state_dict())}
    network.read_labels(LABELS, pad=0)
    before = network.eval()(TEXTS)
    network.store_labels()
    assert network.label_tokens is None
    torch.testing.assert_close(network.labels.norm(dim=1), torch.ones(5))
    assert torch.equal(network(TEXTS), before)
    assert torch.equal(network.train()(TEXTS), before)


def test_labels_of_a_teacher_are_selected_and_reordered() -> None:
    model = Model(described(), network_of()).eval()
    model.network.labels.copy_(torch.randn(5, 8))  # type: ignore[operator]  # a buffer
    before = model(TEXTS)
    take_classes(model, [4, 0, 2], ["c", "a", "b"])
    torch.testing.assert_close(model(TEXTS), before[:, [4, 0, 2]])
    assert (model.config.classes, model.config.class_names) == (3, ["c", "a", "b"])


def test_it_has_no_last_layer_although_an_inner_one_may_have_as_many_outputs() -> None:
    assert last_layer(Model(described(classes=8), network_of(classes=8))) is None


def test_logits_are_float32_under_autocast() -> None:
    network = network_of()
    network.read_labels(LABELS, pad=0)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.train()(TEXTS)
    assert half.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients(network, half))
    torch.testing.assert_close(half, network(TEXTS), rtol=0.1, atol=0.3)


def peak_of(labels: int, depth: int) -> int:
    """Bytes at the peak of a step with so many labels and layers."""
    network = network_of(labels, num_hidden_layers=depth)
    network.read_labels(torch.randint(1, 50, (labels, 8)), pad=0)
    network.train()
    return peak_bytes(lambda: gradients(network, network(TEXTS)))


def test_memory_does_not_grow_with_the_labels_times_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_encoder, "LABELS_AT_ONCE", 16)
    shallow, deep = (peak_of(512, depth) - peak_of(256, depth) for depth in (1, 4))
    vectors = 256 * 8 * 4
    assert deep < shallow + 2 * vectors
    assert deep < 8 * vectors
    monkeypatch.setattr(dual_encoder, "checkpoint", lambda act, tokens, **_: act(tokens))
    assert peak_of(512, 4) - peak_of(256, 4) > 100 * vectors
