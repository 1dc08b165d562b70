"""Language models: one learns to write like a book, and a smaller one learns from it.

python examples/shakespeare.py --text input.txt

The text is any plain file in UTF-8; its last tenth is held out. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from session import alone, console, fetch, finish, options_of, play, read_job, report_of, say, submit

from stillhouse import Client
from stillhouse.cli import views

TRAIN, EVAL = "shakespeare.jsonl", "shakespeare-held-out.jsonl"
HELD_OUT = 0.1
"""Share of the text, at its end."""


def main() -> int:
    parser = options_of("Distils a small language model from a larger one.", "shakespeare-output")
    parser.add_argument("--text", type=Path, required=True, help="what to learn to write like")
    parser.add_argument("--characters", type=int, help="of the text, the first ones; all when not given")
    parser.add_argument(
        "--on-policy", action="store_true", help="also a student that learns from what it writes itself"
    )
    parser.add_argument("--epochs", type=int, help="of every job; its own when not given")
    return play(parser.parse_args(), run)


def run(client: Client, options: argparse.Namespace) -> None:
    """Text, teacher, students, table."""
    data = options.output / "data"
    learned, held = write_text(options.text, data, options.characters)
    say(f"{learned:,} characters to learn from, {held:,} to be measured on.")
    epochs = (f"recipe.epochs={options.epochs}",) if options.epochs else ()
    first = read_job("shakespeare-teacher.yaml", *epochs)
    say("The teacher learns from the text:")
    [taught] = finish(client, [submit(client, first, data)])

    small = read_job("shakespeare.yaml", f"teacher.model={taught.model_id}", *epochs)
    by_itself = alone(small)
    by_itself["data"] = {**small["data"], "tokenizer": first["data"]["tokenizer"]}  # the same tokens as the teacher's
    students = [small, by_itself]
    if options.on_policy:
        students.append(read_job("shakespeare-on-policy.yaml", f"teacher.model={taught.model_id}", *epochs))
    jobs = finish(client, [submit(client, job, data) for job in students])
    for job in (taught, *jobs):
        fetch(client, job, options.output / "models")
    distilled, *others = (report_of(client, job) for job in jobs)
    rows = {"teacher": distilled["teacher"], "distilled": distilled["student"]}
    show(rows | {name: other["student"] for name, other in zip(("alone", "on-policy"), others, strict=False)})
    for told in distilled["continuations"]:
        say("\n".join(f"{name + ':':<10} {text!r}" for name, text in told.items()) + "\n")


def write_text(source: Path, folder: Path, most: int | None = None) -> tuple[int, int]:
    """Write both parts of a text, each as one row of JSON; how many characters they have."""
    folder.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")[:most]
    split = len(text) - round(HELD_OUT * len(text))
    for name, part in ((TRAIN, text[:split]), (EVAL, text[split:])):
        (folder / name).write_text(json.dumps({"text": part}) + "\n", encoding="utf-8")
    return split, len(text) - split


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of language models, by what to call them, from the figures of reports."""
    columns = ("", "parameters", "weights", "perplexity", "accuracy %", "agreement %", "KL", "p50 ms")
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, figures in rows.items():
        shares = (f"{figures[key] * 100:.2f}" if key in figures else "" for key in ("accuracy", "agreement"))
        size, milliseconds = views.size(figures["bytes"]), f"{figures['latency_ms_p50']:.2f}"
        likeness = f"{figures['kl']:.3f}" if "kl" in figures else ""
        perplexity = f"{figures['perplexity']:.2f}"
        table.add_row(name, f"{figures['parameters']:,}", size, perplexity, *shares, likeness, milliseconds)
    console.print(table)
    say(
        "Measured by the worker on the held-out text, at every token. Accuracy: of the likeliest token. Agreement\n"
        "and KL: with and from the teacher. p50: median time of reading a sequence and saying what comes next.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
