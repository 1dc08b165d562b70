"""Chat templates, compared with the rendering of the Transformers library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as theirs
from transformers import PreTrainedTokenizerFast

from app.recipe.data.tokenizers import BytePairs
from worker.data.chats import ChatWriter
from worker.data.documents import Document, read_documents
from worker.data.formats.columns import CellLocation, Chats, Talks
from worker.data.tokens import TextTokenizer, load_tokenizer, train_writer
from worker.errors import UserError

DAY = date(2024, 2, 29)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<s>{% generation %}{{ m.content }}</s>\n{% endgeneration %}"
    "{% else %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
TEMPLATES = {
    "marked": MARKED,
    "marked with dashes": MARKED.replace("{% generation %}", "{%- generation -%}").replace("{% endg", "{%- endg"),
    "marked without a mark of the end": MARKED.replace("</s>\n{% endgeneration %}", "{% endgeneration %}</s>\n"),
    "strftime": "{{ strftime_now('%d %b %Y, %A, %j') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "strftime if there": "{% if strftime_now is defined %}{% set d = strftime_now('%Y-%m-%d') %}{{ d }}{% endif %}x",
    "tojson": "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
    "tojson in order": "{{ messages | tojson(indent=2, sort_keys=True) }}",
    "tojson as ascii": "{{ messages | tojson(ensure_ascii=True) }}",
    "tojson unicode": "{{ messages | tojson(ensure_ascii=False, separators=(',', ':')) }}",
    "blocks": "{% for m in messages %}\n    {% if m.role %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n\n",
    "loops": "{% for m in messages %}{% if loop.index == 1 %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "names": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ cls_token }}|{{ none_such }}",
    "nothing else": "{% if tools is defined %}T{% endif %}{{ tools is none }}{{ documents is none }}",
    "namespace": "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}",
    "macro": "{% macro say(m) %}{{ m.role }}{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "methods": "{% for m in messages %}{{ m['content'].strip().split(' ')[-1] | upper }}{% endfor %}",
    "more": "{% for m in messages %}{{ m.name }}{{ m.thinking }}{{ m.tool_calls }}{% endfor %}",
    "dict": "{{ dict(a=1) | tojson }}{{ range(3) | list }}{{ messages | length }}",
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Été? <b>&'"}, {"role": "assistant", "content": " the cat "}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a dog\u2028no", "name": "Ann"},
        {"role": "assistant", "content": "sat", "reasoning": "a mat", "tool_calls": [{"id": 1, "more": None}]},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "on the\n mat", "name": None},
    ],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as the library keeps it, without a template."""
    found = tmp_path_factory.mktemp("words")
    made = train_writer(BytePairs(vocabulary=600, lowercase=False), ["the cat sat on the mat", "Été: a dog, no?\n"] * 9)
    made.save(found)
    settings = json.loads((found / "tokenizer_config.json").read_text())
    del settings["cls_token"]
    (found / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<s>"}))
    return found


@pytest.fixture(autouse=True)
def that_day(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library reads the clock; it is set to the date that jobs use."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Then:
            return cls(DAY.year, DAY.month, DAY.day)

    monkeypatch.setattr(theirs, "datetime", Then)
    theirs._compile_jinja_template.cache_clear()
    yield
    theirs._compile_jinja_template.cache_clear()


def talks(chats: list[list[dict[str, Any]]]) -> Chats:
    column = Talks(CellLocation("data.train", "messages"))
    for chat in chats:
        column.add(chat)
    return Chats(column.whole())


def readers(folder: Path, template: str) -> tuple[TextTokenizer, Any]:
    """Ours and the library's, with this template."""
    ours, library = load_tokenizer(folder, "teacher.model"), PreTrainedTokenizerFast.from_pretrained(folder)
    ours.template = library.chat_template = template
    return ours, library


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_written_as_the_library_writes_it(folder: Path, name: str) -> None:
    ours, library = readers(folder, TEMPLATES[name])
    writer = ChatWriter(ours, "data.train", DAY)
    for chat, talk in zip(CHATS, talks(CHATS).talks, strict=True):
        for asks in (False, True):
            expected = library.apply_chat_template(chat, tokenize=False, add_generation_prompt=asks)
            assert writer._render(talk, 0, prompts=asks)[0] == expected


def documents(ours: TextTokenizer, chats: list[list[dict[str, Any]]]) -> list[Document]:
    return list(read_documents([talks(chats)], ours, "data.train", DAY))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name.startswith("marked")])
def test_what_a_template_marks_is_learned_and_nothing_else(folder: Path, name: str) -> None:
    ours, library = readers(folder, TEMPLATES[name])
    for chat, document in zip(CHATS, documents(ours, CHATS), strict=True):
        expected = library.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        assert document.ids[:-1].tolist() == expected["input_ids"]
        assert document.counted[:-1].astype(int).tolist() == expected["assistant_masks"]
        assert not document.counted[-1]
        assert document.counted.any()


def test_a_token_that_a_mark_only_touches_is_learned(folder: Path) -> None:
    """As the library counts: a token may begin before what is marked."""
    template = "{% for m in messages %}t{% generation %}he cat{% endgeneration %} s{% endfor %}"
    ours, library = readers(folder, template)
    (document,) = documents(ours, CHATS[:1])
    expected = library.apply_chat_template(CHATS[0], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert document.counted[:-1].astype(int).tolist() == expected["assistant_masks"]


def test_marks_may_differ_from_turns(folder: Path) -> None:
    """Turns that change once others follow do not matter if the template marks the trained tokens."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if loop.last %}<think>{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    ours, _ = readers(folder, template)
    document = documents(ours, CHATS)[1]
    learned = [int(i) for i, counted in zip(document.ids, document.counted, strict=True) if counted]
    assert ours.text(learned) == "saton the\n mat"


@pytest.mark.parametrize(
    "template",
    [
        "{% set kept %}{% generation %}ab{% endgeneration %}{% endset %}{% for m in messages %}-{% endfor %}{{ kept }}",
        "{% macro say() %}+{% generation %}ab{% endgeneration %}{% endmacro %}--{{ say() }}",
    ],
)
def test_marks_with_an_unknown_position_are_refused(folder: Path, template: str) -> None:
    ours, _ = readers(folder, template)
    with pytest.raises(UserError, match=r"row 0 of data\.train: the chat template refuses it: it stores the text"):
        documents(ours, CHATS[:1])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].__class__ }}",
        "{{ strftime_now.__self__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ dict.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ tojson.__globals__ }}",
        "{{ messages | tojson(indent='x' * 2, separators=3) }}",
        "{{ messages[9].content.x }}",
        "{% generation %}{{ messages[0].content.__class__ }}{% endgeneration %}",
    ],
)
def test_a_template_stays_in_its_sandbox(folder: Path, template: str) -> None:
    ours, _ = readers(folder, template)
    try:
        written, _ = ChatWriter(ours, "data.train", DAY)._render(talks(CHATS).talks[0], 0)
    except UserError as error:
        written = error.code
    assert written in ("", "invalid_data")


def test_the_date_is_fixed_and_defaults_to_today(folder: Path) -> None:
    ours, _ = readers(folder, "{{ strftime_now('%Y-%m-%d %H:%M') }}{% for m in messages %}{{ m.role }}{% endfor %}")
    talk = talks(CHATS).talks[0]
    assert ChatWriter(ours, "data.train", DAY)._render(talk, 0)[0].startswith("2024-02-29 00:00")
    before = datetime.now(UTC).date()
    text, _ = ChatWriter(ours, "data.train")._render(talk, 0)
    assert before <= date.fromisoformat(text[:10]) <= datetime.now(UTC).date()
