"""Decoders of the Transformers library: logits and hidden states at every token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.recipe.cost import least_weights
from app.recipe.students.architectures import Shrink, Transformers
from app.recipe.students.hugging_face import DECODER_MODEL_TYPES
from app.recipe.students.shrink import ENCODERS, Unshrinkable, kept_heads, kept_layers, shrunk, teacher_depth
from tests.worker.students import builders
from worker.outputs import HiddenStates
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.shrink import take_over
from worker.students.weights import load_model, save_model

EVERY = pytest.mark.parametrize("model_type", builders.DECODERS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, builders.VOCABULARY, (rows, builders.LENGTH), generator=torch.Generator().manual_seed(1))


def states(model: Model, ids: torch.Tensor) -> HiddenStates:
    said = model.forward_hidden(ids)
    assert isinstance(said, HiddenStates)
    return said


def test_every_type_of_the_contract_is_tested() -> None:
    assert set(builders.DECODERS) == set(DECODER_MODEL_TYPES)


@EVERY
def test_the_last_layer_makes_the_logits_of_the_last_states(model_type: str) -> None:
    """Logits that are scaled or capped after that layer would be trained differently from their use."""
    model, ids = builders.decoder(model_type), tokens()
    rows = torch.arange(ids.numel())
    torch.testing.assert_close(states(model, ids).logits(rows), model(ids).flatten(0, 1))


@EVERY
def test_a_token_sees_none_behind_it(model_type: str) -> None:
    model, ids = builders.decoder(model_type), tokens()
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % builders.VOCABULARY
    ours, theirs = model(ids), model(changed)
    torch.testing.assert_close(ours[:, :6], theirs[:, :6])
    assert not torch.allclose(ours[:, 6:], theirs[:, 6:])


@EVERY
def test_all_of_it_learns_through_the_last_states(model_type: str) -> None:
    model = builders.decoder(model_type).train()
    said = states(model, tokens())
    said.logits(torch.arange(24)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@EVERY
def test_its_cost_is_counted_without_building_it(model_type: str) -> None:
    model = builders.decoder(model_type)
    before = torch.get_rng_state()
    cost = network_cost(model.config)
    assert torch.equal(torch.get_rng_state(), before)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.flops > 0


@EVERY
def test_the_library_opens_what_is_saved(model_type: str, tmp_path: Path) -> None:
    model, ids = builders.decoder(model_type), tokens()
    save_model(model, tmp_path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(input_ids=ids).logits, model(ids))
    torch.testing.assert_close(load_model(tmp_path)(ids), model(ids))
    assert theirs.generation_config.eos_token_id == 2
    assert theirs.get_input_embeddings().padding_idx is None


@EVERY
@pytest.mark.parametrize("asked", [{"layers": [1]}, {"layers": 1, "width": 8, "hidden": 12}], ids=["layers", "all"])
def test_a_smaller_copy_runs_with_leading_parts_of_the_weights(model_type: str, asked: dict[str, Any]) -> None:
    teacher = builders.decoder(model_type)
    student = smaller(teacher, **asked)
    ours, theirs = student.network.get_input_embeddings(), teacher.network.get_input_embeddings()  # type: ignore[operator]
    torch.testing.assert_close(ours.weight, theirs.weight[:, : ours.weight.shape[1]])
    assert student(tokens()).isfinite().all()
    same = "width" not in asked
    norms = [name for name, _ in student.named_parameters() if "norm" in name or "ln_" in name]
    assert norms
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    if same and "0" in norms[0]:
        mine = dict(student.named_parameters())[norms[0]]
        torch.testing.assert_close(mine, dict(teacher.named_parameters())[norms[0].replace(".0.", ".1.")])


SHARED = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
FREE = sorted(name for name in builders.DECODERS if ENCODERS[name].free)
TIED = sorted(set(builders.DECODERS) - set(FREE))
JOINS = re.compile(r".*\.(o_proj|self_attn\.dense)\.weight")
CLOSES = re.compile(r".*\.(down_proj|fc2|dense_4h_to_h|mlp\.c_proj)\.weight")


def smaller(teacher: Model, **asked: Any) -> Model:
    """A student made of `teacher`, in evaluation mode."""
    wanted, network = Shrink.model_validate(asked), teacher.config.architecture
    student = Model(teacher.config.model_copy(update={"architecture": shrunk(wanted, network)}))
    take_over(student, teacher, kept_layers(wanted, teacher_depth(network)), kept_heads(wanted, network))
    return student.eval()


def wide(model_type: str) -> Model:
    """Four heads of eight, of which two share keys and values where the type knows such; vectors that no norm scales to
    nothing."""
    changes: dict[str, Any] = {"n_embd": 32, "n_head": 4} if model_type == "gpt2" else dict(SHARED)
    if model_type == "gpt_neox":
        del changes["num_key_value_heads"]
    teacher = builders.decoder(model_type, **changes)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.2)
    return teacher


@EVERY
@pytest.mark.parametrize("asked", [{"layers": 2}, {"heads": 4}, {"heads": [0, 1, 2, 3]}, {"width": 32}])
def test_a_copy_of_all_there_is_answers_as_its_teacher(model_type: str, asked: dict[str, Any]) -> None:
    teacher = wide(model_type)
    assert torch.equal(smaller(teacher, **asked)(tokens()), teacher(tokens()))


@pytest.mark.parametrize("model_type", sorted({*FREE} - {"olmo2"}))  # whose norms look at all heads together
@pytest.mark.parametrize("heads", [[1, 3], [2, 3], 2, [2], [0, 1, 2, 3]])
def test_without_some_heads_it_computes_as_if_their_outputs_were_0(model_type: str, heads: Any, tmp_path: Path) -> None:
    teacher = wide(model_type)
    student = smaller(teacher, heads=heads)
    kept = heads if isinstance(heads, list) else list(range(heads))
    with torch.no_grad():
        joining = [weight for name, weight in teacher.named_parameters() if JOINS.match(name)]
        for weight in joining:
            for head in {0, 1, 2, 3} - set(kept):
                weight[:, 8 * head : 8 * head + 8] = 0.0
    assert len(joining) == 2
    expected = teacher(tokens())
    torch.testing.assert_close(student(tokens()), expected, rtol=1e-4, atol=1e-4)
    save_model(student, tmp_path)
    torch.testing.assert_close(load_model(tmp_path)(tokens()), student(tokens()))
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(input_ids=tokens()).logits, student(tokens()))


def test_norms_over_all_heads_keep_those_of_the_heads_that_stay() -> None:
    teacher = wide("olmo2")
    ours, theirs = smaller(teacher, heads=[1, 2]).network.state_dict(), teacher.network.state_dict()
    name = "model.layers.1.self_attn.{}_norm.weight"
    assert torch.equal(ours[name.format("q")], theirs[name.format("q")][8:24])
    assert torch.equal(ours[name.format("k")], theirs[name.format("k")])


@EVERY
def test_without_some_units_it_computes_as_if_their_outputs_were_0(model_type: str) -> None:
    teacher = wide(model_type)
    student = smaller(teacher, hidden=12)
    with torch.no_grad():
        closing = [weight for name, weight in teacher.named_parameters() if CLOSES.match(name)]
        for weight in closing:
            (weight[12:] if model_type == "gpt2" else weight[:, 12:]).zero_()
    assert len(closing) == 2
    torch.testing.assert_close(student(tokens()), teacher(tokens()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", TIED)
def test_where_heads_make_up_the_width_it_is_chosen_which_stay(model_type: str) -> None:
    """Half of the width, and of the heads the third and the fourth, which are those that the weights say."""
    teacher = wide(model_type)
    student = smaller(teacher, heads=[2, 3], width=16)
    assert student(tokens()).isfinite().all()
    ours, theirs = student.network.state_dict(), teacher.network.state_dict()
    [name] = [name for name in ours if re.search(r"\.1\..*(c_attn|query_key_value|k_proj)\.weight", name)]
    if model_type == "gpt2":
        mine, whole = ours[name].view(16, 3, 2, 8), theirs[name].view(32, 3, 4, 8)
        assert torch.equal(mine, whole[:16, :, 2:])
    elif model_type == "gpt_neox":
        assert torch.equal(ours[name].view(2, 24, 16), theirs[name].view(4, 24, 32)[2:, :, :16])
    else:
        assert torch.equal(ours[name], theirs[name][8:16, :16])


def test_a_norm_of_each_head_goes_with_its_head() -> None:
    teacher = builders.decoder("stablelm", **SHARED, qk_layernorm=True)
    for name, parameter in teacher.named_parameters():
        if "layernorm.norms" in name:
            torch.nn.init.normal_(parameter)
    ours, theirs = smaller(teacher, heads=[2, 3], width=16).network.state_dict(), teacher.network.state_dict()
    for name, sources in (("q", (2, 3)), ("k", (1,))):
        for place, source in enumerate(sources):
            norm = f"model.layers.0.self_attn.{name}_layernorm.norms.{{}}.weight"
            assert torch.equal(ours[norm.format(place)], theirs[norm.format(source)])


@pytest.mark.parametrize(
    ("model_type", "asked", "field", "word"),
    [
        ("llama", {"heads": 5}, "heads", "the teacher has 4"),
        ("llama", {"heads": [4]}, "heads", "names head 4"),
        ("llama", {"heads": [0, 1, 2]}, "heads", "share their keys"),
        ("llama", {"heads": 2, "width": 31}, "heads", "leaves 2 heads for a width of 31"),
        ("gpt2", {"heads": 2}, "heads", "make up its width of 32"),
        ("stablelm", {"heads": [0, 2], "width": 8}, "heads", "make up its width of 8"),
        ("phi3", {"hidden": 99}, "hidden", "wider"),
    ],
)
def test_heads_that_can_not_be_left_out_are_refused(
    model_type: str, asked: dict[str, Any], field: str, word: str
) -> None:
    with pytest.raises(Unshrinkable, match=word) as caught:
        shrunk(Shrink.model_validate(asked), wide(model_type).config.architecture)
    assert caught.value.field == field


@EVERY
@pytest.mark.parametrize("whose", ["own", "usual"])
def test_a_lower_bound_of_the_weights_needs_no_library(model_type: str, whose: str) -> None:
    """But for norms, biases, positions and a second embedding; of the library's own sizes, too."""
    config = builders.decoder(model_type).config
    if whose == "usual":
        named = Transformers(config={"model_type": model_type, "num_hidden_layers": 2, "n_layer": 2})
        config = config.model_copy(update={"architecture": named})
    network = config.architecture
    assert isinstance(network, Transformers)
    exact, least = network_cost(config).parameters, least_weights(network, config.input, 1)
    assert {"own": 0.8, "usual": 0.94}[whose] * exact < least <= exact
    assert least_weights(network, None, 1) < least


@EVERY
def test_sizes_that_a_configuration_leaves_out_are_the_library_s(model_type: str) -> None:
    known = AutoConfig.for_model(model_type)
    told = ENCODERS[model_type]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    assert told.sizes({})[:3] == tuple(getattr(known, name) for name in names)
    assert told.sizes({})[3] == (getattr(known, "intermediate_size", None) or 4 * known.hidden_size)
    assert (told.shared or told.defaults[2]) == (getattr(known, "num_key_value_heads", None) or told.defaults[2])
    assert told.size == getattr(known, "head_dim", None) or told.size is None


def test_heads_that_share_their_keys_stay_together() -> None:
    sizes = builders.DECODERS["llama"] | {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}
    teacher = Transformers(config={"model_type": "llama", **sizes})
    half = shrunk(Shrink(width=16), teacher)
    assert isinstance(half, Transformers)
    assert (half.config["num_attention_heads"], half.config["num_key_value_heads"]) == (4, 2)
    with pytest.raises(Unshrinkable, match="share"):
        shrunk(Shrink(width=12), teacher)
