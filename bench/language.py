"""Quality of language models by method: all methods under the same conditions, over several seeds, as a table.

python -m bench.language --text input.txt [--methods NAME …] [--seeds 3] [--work FOLDER] [--write docs/quality.md]

The text is any plain file in UTF-8; its last tenth is held out. The teacher is that of
`examples/shakespeare-teacher.yaml`; then every method of `examples/methods-language.yaml` trains the student of
`examples/shakespeare.yaml` from the same first weights of its seed on the same batches.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from app.recipe import documents
from bench.report import replace_part
from bench.students import Document, learns_from_a_teacher, train, training_pool

EXAMPLES = Path(__file__).parents[1] / "examples"
METHODS = EXAMPLES / "methods-language.yaml"
ALONE = "alone"
HELD_OUT = 0.1
"""Share of the text that is held out, at its end."""
Table = dict[str, list["Result"]]


class Result(NamedTuple):
    """Metrics of one model on the held-out text; NaN: there is no teacher to compare with."""

    perplexity: float
    accuracy: float
    agreement: float
    kl: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    parser = text_parser("python -m bench.language", "Compares methods on a text.")
    parser.add_argument("--methods", nargs="*", metavar="NAME", help="of the file of methods; default: all")
    options = parser.parse_args(arguments)
    text = options.text.read_text(encoding="utf-8")[: options.characters]
    known = read_methods()
    methods = {name: known[name] for name in options.methods or known}
    command = " ".join(["python -m bench.language", *(arguments if arguments is not None else sys.argv[1:])])
    with TemporaryDirectory() as scratch:
        table = compare(text, methods, options.seeds, options.work or Path(scratch), options.epochs)
    page = f"{_made(text, table, options.seeds)}\n\n`{command}`\n\n{_table(table)}"
    print(page)
    if options.write:
        replace_part(options.write, "language", page)


def compare(text: str, methods: Mapping[str, Document], seeds: int, folder: Path, epochs: int | None = None) -> Table:
    """Results of every method by seed, and one of `teacher`; `methods` are changes to the student's job by name.
    Finished results in `folder` are not computed again."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(text, folder)
    with training_pool() as pool:
        table = {"teacher": [pool.submit(_train, folder, "teacher", teacher_job(epochs)).result()]}
        jobs = [(name, seed) for seed in range(seeds) for name in methods]
        waiting = [
            pool.submit(_train, folder, f"{name}-{seed}", job_of(methods[name], seed, epochs)) for name, seed in jobs
        ]
        for (name, _), result in zip(jobs, waiting, strict=True):
            table.setdefault(name, []).append(result.result())
    return table


def read_methods() -> dict[str, Document]:
    """Changes of each method to the student's job."""
    return documents.parse(METHODS.read_text(encoding="utf-8"))


def teacher_job(epochs: int | None = None) -> Document:
    """The job of the teacher; `epochs` replaces its own."""
    return _short(_read("shakespeare-teacher.yaml"), 0, epochs)


def job_of(method: Document, seed: int, epochs: int | None = None) -> Document:
    """A student's job. Without a teacher it has the same tokens as the teacher."""
    job = _read("shakespeare.yaml")
    job |= {**method, "recipe": {**job["recipe"], **method.get("recipe", {})}, "teacher": {"model": "teacher"}}
    if not learns_from_a_teacher({key: value for key, value in job.items() if key != "teacher"}):
        del job["teacher"]
        job["data"] = {**job["data"], "tokenizer": _read("shakespeare-teacher.yaml")["data"]["tokenizer"]}
    return _short(job, seed + 1, epochs)


def _read(name: str) -> Document:
    return documents.parse((EXAMPLES / name).read_text(encoding="utf-8"))


def _short(job: Document, seed: int, epochs: int | None) -> Document:
    data = {**job["data"], "train": "train", "eval": "test"}
    recipe = job["recipe"] | ({"epochs": epochs} if epochs else {})
    evaluated = {"every_epochs": 10_000, "prompts": 0}
    return {**job, "data": data, "recipe": recipe, "evaluation": evaluated, "export": ["safetensors"], "seed": seed}


def write_text(text: str, folder: Path) -> None:
    """`train` and `test`, each as one row of JSON."""
    split = len(text) - round(HELD_OUT * len(text))
    for name, part in (("train", text[:split]), ("test", text[split:])):
        (folder / name).write_text(json.dumps({"text": part}) + "\n", encoding="utf-8")


def _train(folder: Path, name: str, document: Document) -> Result:
    out = folder / name
    report = out / "bundle" / "report.json"
    if not report.exists():
        shutil.rmtree(out, ignore_errors=True)
        inputs = {part: folder / part for part in ("train", "test")} | {"teacher": folder / "teacher" / "bundle"}
        train(name, document, inputs, out, folder / "answers")
    student = json.loads(report.read_bytes())["student"]
    print(f"{name}: perplexity {student['perplexity']:.2f}", file=sys.stderr, flush=True)
    return Result(*(student.get(key, float("nan")) for key in Result._fields))


def _made(text: str, table: Table, seeds: int) -> str:
    return (
        f"On {len(text):,} characters, the last tenth held out: the teacher's perplexity is "
        f"{table['teacher'][0].perplexity:.2f}. Mean and standard deviation over {seeds} seed(s)."
    )


def _table(table: Table) -> str:
    alone = statistics.fmean(each.perplexity for each in table[ALONE]) if ALONE in table else float("nan")
    return "\n".join(
        (
            "| method | perplexity | relative to alone | accuracy, % | agreement, % | KL |",
            "|---|---|---|---|---|---|",
            *(_line(name, results, alone) for name, results in table.items() if name != "teacher"),
        )
    )


def _line(name: str, results: Sequence[Result], alone: float) -> str:
    mean = Result(*(statistics.fmean(column) for column in zip(*results, strict=True)))
    spread = f" ± {statistics.stdev(each.perplexity for each in results):.2f}" if len(results) > 1 else ""
    known = mean.agreement == mean.agreement
    agreement, kl = (f"{100 * mean.agreement:.1f}", f"{mean.kl:.3f}") if known else ("", "")
    figures = f"{mean.perplexity:.2f}{spread} | {mean.perplexity / alone:.3f} | {100 * mean.accuracy:.2f}"
    return f"| {name} | {figures} | {agreement} | {kl} |"


def text_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser of the options on the text, sizes and the page."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--text", type=Path, required=True, help="what to learn to write like")
    parser.add_argument("--characters", type=int, help="of the text, the first ones; all when not given")
    parser.add_argument("--epochs", type=int, help="of every job; its own when not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="keeps the jobs; those done there are not run again"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose part is replaced")
    return parser


if __name__ == "__main__":
    main()
