"""Operations and speed of a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from app.recipe.cost import student_cost
from app.recipe.students.architectures import CifarResNet, Mlp, Student, Vit, WideResNet
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.students.model import Model
from worker.training.measure import RUNS, flops, speed


@pytest.mark.parametrize(
    "student",
    [Mlp(hidden=[8]), CifarResNet(depth=8, width=4), WideResNet(depth=10), Vit(patch_size=4, width=16, heads=2)],
    ids=lambda student: student.architecture,
)
def test_measured_operations_are_those_of_the_contract(student: Student) -> None:
    image = ImageInput(channels=3, height=8, width=8)
    preprocessing = Preprocessing(mean=[0.0] * 3, std=[1.0] * 3)
    model = Model(ModelConfig(architecture=student, input=image, preprocessing=preprocessing, classes=5)).eval()
    assert flops(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8)) == student_cost(student, image, 5).flops


def test_attention_that_a_fused_kernel_hides_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval().requires_grad_(False)
    tokens, width, hidden = 5, 16, 32
    projections = 2 * tokens * (4 * width * width + 2 * width * hidden)
    assert flops(layer, torch.zeros(1, tokens, width)) == projections + 2 * 2 * tokens * tokens * width
    assert torch.backends.mha.get_fastpath_enabled()


class Calls(list[int]):
    """Records the size of each batch."""

    def __call__(self, samples: Tensor) -> Tensor:
        self.append(len(samples))
        return samples


def test_latency_is_of_one_sample_and_throughput_of_a_batch() -> None:
    calls = Calls()
    found = speed(calls, torch.zeros(100, 2), prefix="gpu_")
    assert list(found) == ["gpu_latency_ms_p50", "gpu_latency_ms_p95", "gpu_samples_per_second"]
    assert all(value > 0 for value in found.values())
    assert set(calls) == {1, 64}
    assert calls.count(1) <= RUNS + 3


def test_a_slow_model_is_measured_on_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("worker.training.measure.time.perf_counter", lambda: next(clock) * 0.125)
    calls = Calls()
    found = speed(calls, torch.zeros(100, 2))
    assert found["latency_ms_p50"] == pytest.approx(125.0)
    assert max(calls) == 4
    assert found["samples_per_second"] == pytest.approx(4 / 0.125)
