"""From texts and chats to tokens, and which of them are trained on."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from app.recipe.data.tokenizers import BytePairs
from worker.data.chats import ChatWriter
from worker.data.documents import Document, read_documents
from worker.data.formats.columns import ChatMessage, Chats, TextSamples
from worker.data.tokens import TextTokenizer, train_writer
from worker.errors import UserError

TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
FORGETFUL = "{% for message in messages[-1:] %}<s>{{ message.content }}</s>{% endfor %}"
"""Writes the last message alone."""


@pytest.fixture(scope="module")
def plain() -> TextTokenizer:
    return train_writer(BytePairs(vocabulary=600, lowercase=False), ["the cat sat on the mat", "Été: a dog, no?\n"] * 9)


def talking(plain: TextTokenizer, template: str | None = TEMPLATE) -> TextTokenizer:
    return TextTokenizer(plain._tokenizer, template=template)


def talk(*said: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage(*each) for each in said]


def learned(document: Document, reader: TextTokenizer) -> str:
    return reader.text([i for i, counted in zip(document.ids, document.counted, strict=True) if counted])


def test_a_text_comes_back_and_its_end_is_learned(plain: TextTokenizer) -> None:
    text = "Été: the dog sat,\n\n  no?"
    [document] = read_documents([TextSamples([text])], plain, "data.train")
    assert document.ids[0] == plain.begin[0]
    assert document.ids[-1] == plain.end
    assert not document.counted[0]
    assert document.counted[1:].all()
    assert learned(document, plain) == f"{text}</s>"


def test_the_assistants_messages_of_a_chat_are_learned_with_their_end(plain: TextTokenizer) -> None:
    chat = talk(
        ("system", "Be short."),
        ("user", "the cat?"),
        ("assistant", "sat on the mat"),
        ("user", "a dog?"),
        ("assistant", "Été no"),
    )
    reader = talking(plain)
    [document] = read_documents([Chats([chat])], reader, "data.train")
    assert learned(document, reader) == "sat on the mat</s>\nÉté no</s>\n"
    assert "the cat?" in reader.text(document.ids.tolist())
    assert document.ids[-1] == reader.end


def test_a_chat_without_answers_teaches_nothing(plain: TextTokenizer) -> None:
    [document] = read_documents([Chats([talk(("user", "the cat?"))])], talking(plain), "data.train")
    assert not document.counted.any()


def test_a_template_whose_turns_change_is_refused_by_row(plain: TextTokenizer) -> None:
    once = talk(("user", "a"), ("assistant", "b"))
    with pytest.raises(UserError, match=r"row 1 of data\.train") as caught:
        list(read_documents([Chats([once[1:]]), Chats([[*once, *once]])], talking(plain, FORGETFUL), "data.train"))
    assert caught.value.code == "invalid_data"


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{ messages[0].content.__class__.__mro__ }}", "refuses"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{% for x in %}", "can't be read"),
        (None, "no chat template"),
    ],
)
def test_templates_that_reach_out_or_fail_are_refused(plain: TextTokenizer, template: str | None, word: str) -> None:
    with pytest.raises(UserError, match=word):
        ChatWriter(talking(plain, template), "data.train").write(talk(("user", "a")), 0)


def larger(plain: TextTokenizer, *tokens: str) -> TextTokenizer:
    more = tokenizers.Tokenizer.from_str(plain._tokenizer.to_str())
    more.add_special_tokens(list(tokens))
    return TextTokenizer(more)


def test_a_tokenizer_with_tokens_added_reads_the_same(plain: TextTokenizer) -> None:
    more = larger(plain, "<|tool|>")
    assert plain.reads_like(more)
    assert not more.reads_like(plain)
    other = train_writer(BytePairs(vocabulary=520, lowercase=False), ["something else"])
    assert not plain.reads_like(other)


def test_gpt2_s_tokenizer_ends_texts_and_puts_nothing_around_them() -> None:
    raw = tokenizers.Tokenizer(models.BPE({"a": 0, "<|endoftext|>": 1}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    reader = TextTokenizer(raw)
    [document] = read_documents([TextSamples(["aa"])], reader, "data.train")
    assert document.ids.tolist() == [0, 0, 1]
    assert document.counted.all()
