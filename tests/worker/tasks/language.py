"""Small jobs of language models, staged and run in this process."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from tests.worker.training.builders import with_teacher
from worker.protocol import Assignment

Document = dict[str, Any]
LENGTH = 16
GPT2: Document = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
LLAMA: Document = {
    **{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 32},
}
DISTILLED: list[Document] = [{"kind": "cross-entropy", "weight": 0.5}, {"kind": "kd", "temperature": 2.0}]


def sentences(rows: int = 40) -> list[str]:
    """Texts in which some words follow others."""
    draw = random.Random(0)
    pairs = (("the cat", "sat on the mat"), ("the dog", "ran to the door"), ("A bird", "sang, and flew off"))
    return [f"{' '.join(draw.choice(pairs))}.\nThen it was {draw.choice(('dark', 'late'))}." for _ in range(rows)]


def stage(
    folder: Path,
    network: Document,
    teacher: Path | None = None,
    losses: list[Document] | None = None,
    rows: list[Document] | None = None,
    **more: Any,
) -> Assignment:
    """Put a job's texts, and its teacher's files, into `folder`."""
    folder.mkdir(parents=True)
    lines = rows or [{"text": text} for text in sentences()]
    (folder / "texts").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = {"format": "jsonl", "train": "texts", "input_columns": list(lines[0]), "max_length": LENGTH}
    data |= {} if teacher else {"tokenizer": {"kind": "bpe", "vocabulary": 520, "lowercase": False}}
    recipe = {"losses": losses or [{"kind": "cross-entropy"}], "epochs": 2, "batch_size": 8}
    job: Document = {
        "task": "causal-lm",
        "data": data | more.pop("data", {}),
        "student": {"architecture": "transformers", "config": network},
        "recipe": recipe | {"optimizer": {"kind": "adamw", "lr": 3e-3}} | more.pop("recipe", {}),
        "evaluation": {"prompt_tokens": 4, "new_tokens": 5},
        "export": ["safetensors"],
        "seed": 1,
    }
    return with_teacher(folder, job | more, teacher)


CHATML = (
    "{% for message in messages %}<s>{{ message.role }}\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
CHATS: list[Document] = [
    {
        "messages": [
            {"role": "user", "content": "What did the cat do?"},
            {"role": "assistant", "content": text},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": "That is all."},
        ]
    }
    for text in sentences(12)
]


def can_talk(teacher: Path, folder: Path) -> Path:
    """A copy of a teacher in `folder`, with a chat template."""
    shutil.copytree(teacher, folder)
    settings = json.loads((teacher / "tokenizer_config.json").read_text()) | {"chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
