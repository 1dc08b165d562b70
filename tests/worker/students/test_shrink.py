"""Students that are smaller copies of their teachers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from app.recipe.students.architectures import CifarResNet, CifarVgg, Mlp, Network, Transformers, Vit, WideResNet
from app.recipe.students.derived import network_of, start_of
from app.recipe.students.layers import NalaAttention, SoftAttention
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TextInput
from tests.worker.students import builders
from worker.errors import UserError
from worker.students.model import Model
from worker.students.shrink import inherit

ENCODERS = ["bert", "camembert", "deit", "distilbert", "electra", "roberta", "vit", "xlm-roberta"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def job(**student: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "data": {"train": "data"},
            "teacher": {"model": "t"},
            "student": {"architecture": "shrink", **student},
            "recipe": {"losses": [{"kind": "kd"}]},
        }
    )


def described(network: Network) -> ModelConfig:
    if isinstance(network, Transformers):
        return builders.described(network)
    image = ImageInput(channels=3, height=8, width=8)
    return ModelConfig(architecture=network, input=image, preprocessing=Preprocessing(mean=[0.5], std=[2.0]), classes=5)


def shrunk(spec: JobSpec, teacher: Model, **changes: Any) -> Model:
    network = network_of(spec, {"t": teacher.config})
    assert network is not None
    torch.manual_seed(1)
    config = teacher.config.model_copy(update={"architecture": network, **changes})
    return inherit(Model(config), spec, {"teacher": teacher}).eval()


def teacher_of(network: Network) -> Model:
    torch.manual_seed(0)
    return Model(described(network)).eval()


def refusal(spec: JobSpec, network: Network) -> tuple[str, str]:
    """Path and message of the only problem."""
    (problem,) = find_problems(spec, InputFacts(teachers={"t": described(network)}))
    return problem.param, problem.message


@pytest.mark.parametrize(
    "network",
    [
        CifarResNet(depth=14, width=4),
        WideResNet(depth=16, widen=2),
        Vit(width=8, depth=3, heads=2),
        *map(builders.network, ENCODERS),
    ],
    ids=lambda network: network.config["model_type"] if isinstance(network, Transformers) else network.architecture,
)
def test_a_student_of_all_layers_and_the_whole_width_is_the_teacher(network: Network) -> None:
    teacher = teacher_of(network)
    depth = {"cifar-resnet": 2, "wide-resnet": 2, "vit": 3}.get(network.architecture, 2)
    student = shrunk(job(layers=depth), teacher)
    samples = builders.samples(teacher.config)
    torch.testing.assert_close(student(samples), teacher(samples))


@pytest.mark.parametrize("model_type", ENCODERS)
def test_layers_of_an_encoder_are_the_teacher_s_of_the_same_place(model_type: str) -> None:
    layers = "n_layers" if model_type == "distilbert" else "num_hidden_layers"
    teacher = teacher_of(builders.network(model_type, **{layers: 4}))
    student = shrunk(job(layers=[1, 3]), teacher)
    assert student(builders.samples(student.config)).shape == (2, 5)
    theirs, ours = teacher.network.state_dict(), student.network.state_dict()
    assert len(ours) < len(theirs)
    for name, tensor in ours.items():
        source = name.replace("layer.1.", "layer.3.").replace("layers.1.", "layers.3.")
        source = source.replace("layer.0.", "layer.1.").replace("layers.0.", "layers.1.")
        assert torch.equal(tensor, theirs[source]), name


@pytest.mark.parametrize("model_type", ENCODERS)
def test_a_narrower_encoder_has_the_leading_heads(model_type: str) -> None:
    teacher = teacher_of(builders.network(model_type))
    student = shrunk(job(width=8, hidden=12), teacher)
    assert student(builders.samples(student.config)).isfinite().all()
    ours, theirs = (dict(model.network.named_parameters()) for model in (student, teacher))
    name = next(
        name for name in ours if "layer" in name and name.endswith(("query.weight", "q_lin.weight", "q_proj.weight"))
    )
    assert torch.equal(ours[name], theirs[name][:8, :8])


@pytest.mark.parametrize("model_type", [*ENCODERS, "zoo"])
def test_heads_that_are_named_are_those_that_stay(model_type: str) -> None:
    """The same as the leading heads of an equivalent teacher with reordered heads."""
    network = Vit(width=16, depth=2, heads=2) if model_type == "zoo" else builders.network(model_type)
    teacher = teacher_of(network)
    student = shrunk(job(heads=[1], width=8), teacher)
    samples = builders.samples(teacher.config)
    before = teacher(samples)
    swap_heads(teacher)
    torch.testing.assert_close(teacher(samples), before)
    torch.testing.assert_close(student(samples), shrunk(job(width=8), teacher)(samples))
    assert not torch.allclose(student(samples), shrunk(job(heads=[1], width=8), teacher)(samples), atol=1e-6)


@torch.no_grad()
def swap_heads(teacher: Model) -> None:
    """Swaps two heads of eight."""
    for name, parameter in teacher.network.named_parameters():
        if "attention" not in name or "norm" in name.lower():
            continue
        joins = name.endswith(
            ("attention.output.dense.weight", "out_lin.weight", "o_proj.weight", "attention.out.weight")
        )
        if "qkv" in name:
            parts = parameter.view(3, 2, 8, -1)
            parameter.copy_(parts.flip(1).reshape(parameter.shape))
        elif joins:
            parameter.copy_(parameter.view(-1, 2, 8).flip(1).reshape(parameter.shape))
        elif not name.endswith(("output.dense.bias", "out_lin.bias", "o_proj.bias", "attention.out.bias")):
            parameter.copy_(parameter.view(2, 8, -1).flip(0).reshape(parameter.shape))


def test_fused_queries_keys_and_values_keep_their_leading_heads() -> None:
    teacher = teacher_of(Vit(width=16, depth=2, heads=4, mlp_ratio=2.0))
    student = shrunk(job(layers=1, width=8), teacher)
    assert student.config.architecture == Vit(width=8, depth=1, heads=2, mlp_ratio=2.0)
    name = "blocks.0.attention.qkv.weight"
    ours, theirs = student.network.state_dict()[name], teacher.network.state_dict()[name]
    for part in range(3):
        assert torch.equal(ours[8 * part : 8 * part + 8], theirs[16 * part : 16 * part + 8, :8])


def test_blocks_and_channels_of_a_residual_network_are_the_leading_ones() -> None:
    teacher = teacher_of(CifarResNet(depth=20, width=8))
    student = shrunk(job(layers=[0, 2], width=6), teacher)
    assert student.config.architecture == CifarResNet(depth=14, width=6)
    ours, theirs = student.network.state_dict(), teacher.network.state_dict()
    assert torch.equal(ours["stages.1.1.conv1.weight"], theirs["stages.1.2.conv1.weight"][:12, :12])
    assert torch.equal(ours["stages.2.0.norm1.running_var"], theirs["stages.2.0.norm1.running_var"][:24])


def test_layers_are_chosen_evenly_from_the_first_to_the_last() -> None:
    teacher = teacher_of(Vit(width=8, depth=12, heads=2))
    student = shrunk(job(layers=6), teacher)
    theirs = teacher.network.state_dict()
    name = "blocks.{}.attention.out.weight"
    for ours, kept in enumerate([0, 2, 4, 7, 9, 11]):
        assert torch.equal(student.network.state_dict()[name.format(ours)], theirs[name.format(kept)])


def test_other_outputs_leave_the_last_layer_fresh() -> None:
    teacher = teacher_of(builders.network("roberta"))
    student = shrunk(job(layers=1), teacher, classes=3)
    ours, theirs = student.network.state_dict(), teacher.network.state_dict()
    assert torch.equal(ours["classifier.dense.weight"], theirs["classifier.dense.weight"])
    assert not torch.equal(ours["classifier.out_proj.weight"], theirs["classifier.out_proj.weight"][:3])


def test_a_fresh_student_takes_nothing_over() -> None:
    teacher = teacher_of(Vit(width=8, depth=2, heads=2))
    spec = job(layers=1, init="fresh")
    student = shrunk(spec, teacher)
    torch.manual_seed(1)
    fresh = Model(student.config)
    assert torch.equal(student.network.state_dict()["head.weight"], fresh.network.state_dict()["head.weight"])
    assert start_of(spec, {"t": teacher.config}) is None


def test_a_student_of_the_teacher_s_weights_prepares_samples_as_the_teacher_does() -> None:
    teacher = described(Vit(width=8, depth=2, heads=2))
    assert start_of(job(layers=1), {"t": teacher}) == teacher


def test_a_student_that_reads_other_tokens_is_refused() -> None:
    teacher = teacher_of(builders.network("bert"))
    other = TextInput(length=builders.LENGTH, vocabulary=50, pad=builders.PAD, separator=builders.SEPARATOR)
    with pytest.raises(UserError, match="has other tokens"):
        shrunk(job(layers=1), teacher, input=other)


def test_a_student_may_read_shorter_texts_and_know_fewer_tokens_than_the_network_of_its_teacher() -> None:
    teacher = teacher_of(builders.network("bert"))
    known = builders.VOCABULARY - 2
    shorter = TextInput(length=5, vocabulary=known, pad=builders.PAD, separator=builders.SEPARATOR)
    student = shrunk(job(layers=1), teacher, input=shorter)
    ours, theirs = (
        model.network.get_parameter("bert.embeddings.word_embeddings.weight") for model in (student, teacher)
    )
    assert torch.equal(ours, theirs[:known])


@pytest.mark.parametrize(
    ("network", "student", "param", "word"),
    [
        (Mlp(), {"layers": 1}, "student.architecture", "mlp"),
        (CifarVgg(), {"layers": 1}, "student.architecture", "cifar-vgg"),
        (builders.network("swin"), {"layers": 1}, "student.architecture", "swin"),
        (Vit(depth=2), {"layers": 3}, "student.layers", "the teacher has 2"),
        (Vit(depth=2), {"layers": [0, 2]}, "student.layers", "names layer 2"),
        (Vit(width=64, heads=4), {"width": 40}, "student.width", "head"),
        (Vit(width=64, heads=4), {"width": 128}, "student.width", "wider"),
        (Vit(width=64, heads=4), {"hidden": 999}, "student.hidden", "wider"),
        (Vit(attention=NalaAttention()), {"width": 32}, "student.width", "nala has no smaller copy"),
        (Vit(attention=SoftAttention()), {"heads": 2}, "student.heads", "soft has no smaller copy"),
        (CifarResNet(depth=20), {"layers": [1]}, "student.layers", "first block"),
        (CifarResNet(depth=110), {"layers": 4}, "student.layers", "26 weighted layers"),
        (CifarResNet(padding="both"), {"width": 8}, "student.width", "pad on both sides"),
        (CifarResNet(depth=20), {"hidden": 8}, "student.hidden", "is not for"),
        (WideResNet(widen=4), {"width": 24}, "student.width", "24"),
        (Vit(), {"layers": 1, "teacher": "other"}, "student.teacher", "other"),
    ],
)
def test_what_can_t_be_shrunk_is_refused_with_the_reason(
    network: Network, student: dict[str, Any], param: str, word: str
) -> None:
    found = refusal(job(**student), network)
    assert found[0] == param
    assert word in found[1]


def test_there_must_be_a_teacher_to_shrink() -> None:
    document = job(layers=1).model_dump(mode="json") | {"teacher": None}
    document["recipe"]["losses"] = [{"kind": "cross-entropy"}]
    (problem,) = find_problems(JobSpec.model_validate(document))
    assert problem.param == "student.architecture"


def test_without_a_size_there_is_nothing_to_shrink() -> None:
    (problem,) = find_problems(job())
    assert (problem.param, "layers" in problem.accepted) == ("student", True)


@pytest.mark.parametrize("student", [{"layers": []}, {"layers": [1, 0]}, {"layers": [0, 0]}, {"layers": 0}])
def test_a_student_needs_a_setting_that_shrinks(student: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="layers"):
        job(**student)
