"""Generation is the same with the key-value cache as without it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from app.recipe.students.architectures import Transformers
from app.recipe.students.hugging_face import DECODER_MODEL_TYPES
from app.recipe.students.model import ModelConfig, TextInput
from worker.data.randomness import generator
from worker.students.decoding import GREEDY, SamplingParams, generate, greedy_continuation, next_logits
from worker.students.measure import reading
from worker.students.model import Model
from worker.training.measure import flops

VOCABULARY, MOST = 50, 9
PROMPTS = [[7, 8, 9], [11], [3, 4, 5, 6, 12, 13, 14], [20, 21]]
SAMPLED = SamplingParams(temperature=1.3, top_k=None)
SIZES: dict[str, Any] = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    **{"intermediate_size": 24, "max_position_embeddings": 32, "sliding_window": 6},
}


def model(kind: str = "llama") -> Model:
    torch.manual_seed(3)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32} if kind == "gpt2" else SIZES
    network = Transformers(config={"model_type": kind, **sizes, "initializer_range": 0.5})
    sample = TextInput(length=24, vocabulary=VOCABULARY, pad=2)
    return Model(ModelConfig(task="causal-lm", architecture=network, input=sample)).eval()


def prompts() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(prompt) for prompt in PROMPTS])
    return torch.tensor([prompt + [2] * (int(lengths.max()) - len(prompt)) for prompt in PROMPTS]), lengths


def read_again(writer: Model, prompt: list[int], sampling: SamplingParams) -> list[int]:
    """One text, for every token of which all that is before is read anew."""
    text = list(prompt)
    for _ in range(MOST):
        with torch.no_grad():
            text.append(int(sampling.choose(next_logits(writer, torch.tensor([text])))))
    return text


@pytest.mark.parametrize("kind", DECODER_MODEL_TYPES)
def test_cached_decoding_equals_decoding_without_a_cache(kind: str) -> None:
    writer = model(kind)
    written = generate(writer, *prompts(), MOST)
    for prompt, tokens, own in zip(PROMPTS, *written, strict=True):
        expected = read_again(writer, prompt, GREEDY)
        assert tokens[: len(expected)].tolist() == expected
        assert own.nonzero().flatten().tolist() == list(range(len(prompt), len(expected)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma", "mistral"])
@pytest.mark.parametrize("sampling", [SAMPLED, SamplingParams(0.7, 5)], ids=["all", "top-k"])
def test_so_are_tokens_that_are_drawn(kind: str, sampling: SamplingParams) -> None:
    writer, (tokens, _) = model(kind), prompts()
    begun, again = tokens[:, :3], generator(1, "draws")
    written = generate(writer, begun, torch.full((4,), 3), MOST, sampling, draw=generator(1, "draws")).tokens
    for _ in range(MOST):
        with torch.no_grad():
            begun = torch.cat((begun, sampling.choose(next_logits(writer, begun), again).unsqueeze(1)), 1)
    assert torch.equal(written, begun)
    assert not torch.equal(written, generate(writer, tokens[:, :3], torch.full((4,), 3), MOST).tokens)


def test_a_text_is_over_with_a_token_that_ends_it() -> None:
    writer, (tokens, lengths) = model(), prompts()
    free = generate(writer, tokens, lengths, MOST)
    ends = free.tokens[0, lengths[0] + 2].reshape(1)
    written = generate(writer, tokens, lengths, MOST, ends=ends)
    for row, length in enumerate(lengths.tolist()):
        said = free.tokens[row, length : length + MOST].tolist()
        until = said.index(int(ends)) + 1 if int(ends) in said else MOST
        assert written.tokens[row, written.generated[row]].tolist() == said[:until]
    assert int(written.generated[0].sum()) <= 3
    alone = generate(writer, tokens[:1, :3], lengths[:1], MOST, ends=ends)
    assert torch.equal(alone.tokens[0], written.tokens[0, : alone.tokens.shape[1]])  # nothing is read behind the end


def test_of_the_likeliest_tokens_alone_each_is_drawn_by_its_probability() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0, 9.0]]).repeat(20_000, 1)
    chosen = SamplingParams(temperature=2.0, top_k=3, vocabulary=4).choose(logits, generator(0))
    found = torch.bincount(chosen, minlength=5) / len(chosen)
    expected = torch.tensor([3.0, 1.0, 2.0]).div(2).softmax(0)
    torch.testing.assert_close(found, torch.tensor([*expected, 0.0, 0.0]), rtol=0.0, atol=0.02)


def test_numbers_that_are_not_finite_choose_some_token() -> None:
    broken = torch.full((2, 5), torch.nan)
    assert SAMPLED.choose(broken, generator(0)).max() < 5
    assert GREEDY.choose(broken).max() < 5


def test_continuations_have_the_likeliest_tokens() -> None:
    writer = model()
    assert greedy_continuation(writer, torch.tensor([PROMPTS[0]]), MOST)[0].tolist() == read_again(
        writer, PROMPTS[0], GREEDY
    )
    assert greedy_continuation(writer, torch.tensor([PROMPTS[0]]), 0)[0].tolist() == PROMPTS[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_what_reading_and_writing_take_is_what_runs(kind: str) -> None:
    writer, begin, length = model(kind), 4, 13
    tokens, told = torch.randint(3, VOCABULARY, (1, length)), reading(writer.config)
    assert flops(writer, tokens) == told.of(length)
    writes = partial(generate, writer, lengths=torch.tensor([begin]), max_new_tokens=length - begin)
    assert flops(writes, tokens[:, :begin]) == told.writing(begin, length)
