"""Search in a corpus of scientific abstracts by claims (SciFact, in the layout of BEIR), by loss.

python -m bench.retrieval FOLDER [--seeds 3] [--write docs/quality.md]

Nothing is pretrained elsewhere: a teacher learns pairs of titles and abstracts, and the claims with their abstracts; a
student of every seed learns the titles and abstracts, and then the claims by each loss.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.report import mean_cells, replace_part
from bench.students import Document, learns_from_a_teacher, train, training_pool

METRICS = ("ndcg_at_10", "mrr", "recall_at_10")
MINING: Document = {"mining": {"count": 3}}
LOSSES: dict[str, tuple[list[Document], Document]] = {
    "contrastive": ([{"kind": "contrastive"}], {}),
    "contrastive, mined negatives": ([{"kind": "contrastive"}], MINING),
    "mw, mined negatives": ([{"kind": "mw"}], MINING),
    "unime (teacher's cosines), mined negatives": ([{"kind": "unime", "target": "teacher"}], MINING),
    "lg-anna (teacher's cosines), mined negatives": ([{"kind": "lg-anna", "relevance": "teacher"}], MINING),
    "dexml, mined negatives": ([{"kind": "dexml"}], MINING),
}
"""Losses of the students, and further fields of the data, by the names of the rows."""
TEACHER, STARTS = "teacher", "student before the claims"
Table = dict[str, list[list[float]]]
"""By row the values of `METRICS` for every seed."""


class Size(NamedTuple):
    """Size of the comparison."""

    seeds: int = 3
    teacher_epochs: int = 3
    epochs: int = 2
    """Of the student on titles and abstracts."""
    claim_epochs: int = 4
    length: int = 32
    """Tokens of a text."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    parser = argparse.ArgumentParser("python -m bench.retrieval", description="Compares losses of retrieval.")
    parser.add_argument("folder", type=Path, help="folder with corpus.jsonl.gz, queries_*.jsonl and qrels_*.tsv")
    parser.add_argument("--seeds", type=int, default=Size().seeds)
    parser.add_argument("--write", type=Path, help="page with the markers of the section")
    options = parser.parse_args(arguments)
    begun, size = time.monotonic(), Size(seeds=options.seeds)
    text = section(size, compare(options.folder, size), time.monotonic() - begun)
    print(text)
    if options.write:
        replace_part(options.write, "retrieval", text)


def compare(source: Path, size: Size) -> Table:
    """The metrics of the teacher, and of the students of each seed before and after the claims."""
    table: Table = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_files(source, folder)
        with training_pool(1) as pool:
            table[TEACHER] = [pool.submit(_train, folder, TEACHER, teacher_job(size)).result()]
            for seed in range(1, size.seeds + 1):
                jobs = {STARTS: start_job(size, seed)}
                jobs |= {row: claims_job(size, seed, *LOSSES[row]) for row in LOSSES}
                for row, job in jobs.items():
                    name = f"start-{seed}" if row == STARTS else f"{row}-{seed}".replace(" ", "_")
                    table.setdefault(row, []).append(pool.submit(_train, folder, name, job).result())
    return table


def write_files(source: Path, folder: Path) -> None:
    """The files of the jobs, from those of the data set."""
    with gzip.open(source / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = {str(row["_id"]): row for row in map(json.loads, lines)}
    texts = {number: f"{row['title']} {row['text']}" for number, row in documents.items()}
    titles = [{"query": row["title"], "positives": [row["text"]]} for row in documents.values()]
    claims = {part: list(_claims(source, part, texts)) for part in ("train", "dev")}
    for name, rows in {
        "titles": titles,
        "claims": claims["train"],
        "both": [*titles, *claims["train"]],
        "dev": claims["dev"],
        "corpus": [{"text": text} for text in texts.values()],
    }.items():
        _write(folder / name, rows)


def _claims(source: Path, part: str, texts: dict[str, str]) -> Iterator[Document]:
    relevant: dict[str, list[str]] = {}
    for line in (source / f"qrels_{part}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, _ = line.split("\t")
        relevant.setdefault(query, []).append(texts[document])
    for line in (source / f"queries_{part}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["_id"] in relevant:
            yield {"query": row["text"], "positives": relevant[row["_id"]]}


def _write(path: Path, rows: Iterable[Document]) -> None:
    for row in rows:
        row.setdefault("negatives", [])
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _job(size: Size, train_on: str, student: Document, seed: int, epochs: int, **more: Document) -> Document:
    data = {
        **{"train": train_on, "eval": "dev", "corpus": "corpus", "format": "jsonl", "input_columns": ["query"]},
        **{"candidate_columns": ["positives", "negatives"], "max_length": size.length},
    }
    return {
        **{"task": "embedding", "data": data | more.get("data", {}), "student": student, "seed": seed},
        "embedding": {"pooling": "mean", "normalise": True},
        "recipe": {
            **{"losses": [{"kind": "contrastive"}], "epochs": epochs, "batch_size": 64},
            **{"optimizer": {"kind": "adamw", "lr": 1e-3}, "schedule": {"kind": "cosine", "warmup_steps": 20}},
            **more.get("recipe", {}),
        },
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
    }


def encoder(width: int) -> Document:
    """An encoder of one layer."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_hidden_layers": 1}
    return {"architecture": "transformers", "config": {"model_type": "bert", "max_position_embeddings": 64, **sizes}}


def teacher_job(size: Size) -> Document:
    """The job of the teacher."""
    return _job(size, "both", encoder(128), 0, size.teacher_epochs)


def start_job(size: Size, seed: int) -> Document:
    """The job of a student on titles and abstracts."""
    return _job(size, "titles", encoder(64), seed, size.epochs)


def claims_job(size: Size, seed: int, losses: list[Document], data: Document) -> Document:
    """The job of a student on the claims, from where `start_job` has left it."""
    student = {"architecture": "pretrained", "model": f"start-{seed}"}
    job = _job(size, "claims", student, seed, size.claim_epochs, data=data, recipe={"losses": losses})
    needs = bool(data) or learns_from_a_teacher(job)  # negatives are mined by the teacher
    return job | ({"teacher": {"model": TEACHER}} if needs else {})


def _train(folder: Path, name: str, document: Document) -> list[float]:
    models = [one["model"] for one in (document.get("teacher", {}), document["student"]) if "model" in one]
    inputs = {document["data"][field]: folder / document["data"][field] for field in ("train", "eval", "corpus")}
    inputs |= {model: folder / model_folder(model) / "bundle" for model in models}
    report, _ = train(name, document, inputs, folder / model_folder(name), folder / "answers")
    return [report["student"][metric] for metric in METRICS]


def model_folder(name: str) -> str:
    """Folder of a job, which is not the name of any file."""
    return f"job-{name}"


def section(size: Size, table: Table, seconds: float) -> str:
    """The text and the table."""
    lines = [
        f"On SciFact: 300 claims search 5,183 abstracts, cut to {size.length} tokens. The teacher is a BERT of one "
        f"layer and width 128, trained by `contrastive` on titles with abstracts and on 809 claims with theirs "
        f"({size.teacher_epochs} epochs, one seed); students have width 64, learn titles with abstracts first "
        f"({size.epochs} epochs) and then the claims by each loss ({size.claim_epochs} epochs); mean and standard "
        f"deviation over {size.seeds} seeds. Negatives are mined by the teacher among the abstracts of the claims to "
        f"train on ({MINING['mining']['count']} for each). Nothing is pretrained elsewhere. The run took "
        f"{seconds / 60:.0f} minutes.",
        "",
        "`python -m bench.retrieval FOLDER`",
        "",
        f"| losses | {' | '.join(METRICS)} |",
        "|---" * (len(METRICS) + 1) + "|",
        *(f"| {row} | {' | '.join(mean_cells(results))} |" for row, results in table.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
