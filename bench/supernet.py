"""A searched student against a sub-network drawn at random and a shrunk teacher of its size.

python -m bench.supernet --teacher FOLDER --train train.tsv.gz --eval dev.tsv.gz [--seeds 3] [--write docs/quality.md]

The teacher is a folder of sentence-transformers with a BERT. The files have a header line and columns set apart by
tabs, among them `sentence1`, `sentence2` and `score`, as in the STS Benchmark; scores are used for evaluation alone.
The search uses the first third of the held-out pairs, and everything is measured on the others. The shrunk teacher
has the sizes of the searched student, and learns by the same losses in as many steps.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from app.recipe.losses.taps import Tap
from app.recipe.students.searched import SEARCH, SearchFile, SearchRow
from bench.report import mean_cells, replace_part
from bench.students import Document, prepare_process, train
from worker.data.formats.columns import TextSamples
from worker.data.tokens import load_tokenizer
from worker.losses.features.attention_relation import relation_kl, relations
from worker.metrics.embeddings import pair_cosines, spearman_correlation
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.students.super_network import SuperNetwork
from worker.students.weights import load_model

LENGTH, BATCH, HEADS = 32, 32, 12
PART = 64
"""Texts that are evaluated at a time."""
DRAWN = 3
"""Sub-networks that are drawn for the comparison."""
SIMILAR = 0.1
"""Their weights differ from the searched student's by this share at most."""


class Row(NamedTuple):
    """Figures of a student, or of several with one seed: their means."""

    title: str
    parameters: float
    loss: float
    """Relation loss on the held-out texts."""
    spearman: float


class HeldOut(NamedTuple):
    """Pairs that are measured on."""

    ids: Tensor
    """Token ids (2 N, S) int64, the texts of a pair one after the other."""
    scores: Tensor
    """(N,) float64."""
    teacher: Model
    taught: list[list[Tensor]]
    """Relations of the teacher's queries, keys and values, part by part."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    options = _parser().parse_args(arguments)
    command = " ".join(["python -m bench.supernet", *(arguments if arguments is not None else sys.argv[1:])])
    prepare_process()
    begin = time.monotonic()
    with TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        tables, searches = compare(options, folder)
    page = f"{_made(options, searches, time.monotonic() - begin)}\n\n`{command}`\n\n{_table(tables)}"
    print(page)
    if options.write:
        replace_part(options.write, "supernet", page)


def compare(options: argparse.Namespace, folder: Path) -> tuple[list[list[Row]], list[SearchFile]]:
    """The rows of each seed, and its search; finished jobs in `folder` are not run again."""
    pairs = read_pairs(options.eval)
    third = len(pairs) // 3
    write_pairs(read_pairs(options.train), folder / "train.tsv")
    write_pairs(pairs[:third], folder / "search.tsv")
    teacher = load_model(options.teacher)
    held_out = prepare(pairs[third:], options.teacher, teacher)
    of_teacher = measure("teacher", teacher, held_out)
    found = [students(options, folder, seed, held_out) for seed in range(options.seeds)]
    return [[of_teacher, *rows] for rows, _ in found], [search for _, search in found]


def students(options: argparse.Namespace, folder: Path, seed: int, held_out: HeldOut) -> tuple[list[Row], SearchFile]:
    """Rows of the students of one seed, and the search."""
    whole: Document = {"kind": "supernet", "spaces": [options.space], "search": {"max_parameters": options.most}}
    layers = teacher_layers(held_out.teacher)
    document = job_of({"architecture": "shrink"}, (layers, layers), options, seed, whole)
    run(name := f"searched-{seed}", document, options.teacher, folder)
    searched = folder / name / "bundle"
    search = SearchFile.model_validate_json((searched / SEARCH).read_bytes())
    chosen = search.rows[search.chosen]
    sizes = {"layers": chosen.layers, "width": chosen.width, "hidden": chosen.hidden}
    document = job_of({"architecture": "shrink", **sizes}, (layers, chosen.layers), options, seed)
    run(name := f"shrunk-{seed}", document, options.teacher, folder)
    drawn = [measure("", extracted(search, row, searched), held_out) for row in similar(search, seed)]
    if not drawn:
        raise ValueError("no other sub-network has nearly as many weights as the searched one: choose another --most")
    mean = [statistics.fmean(values) for values in zip(*(row[1:] for row in drawn), strict=True)]
    return [
        measure("searched", load_model(searched), held_out),
        Row(f"drawn at random, mean of {len(drawn)}", *mean),
        measure("shrunk", load_model(folder / name / "bundle"), held_out),
    ], search


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Two texts and their score."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence1"], row["sentence2"], float(row["score"])) for row in reader]


def write_pairs(pairs: Sequence[tuple[str, str, float]], path: Path) -> None:
    """A file with a header line and columns set apart by tabs."""
    lines = ["one\tother\tscore", *(f"{one}\t{other}\t{score}" for one, other, score in pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def teacher_layers(teacher: Model) -> int:
    """Layers of a BERT."""
    return int(teacher.network.config.num_hidden_layers)  # type: ignore[union-attr]


def projections(layer: int) -> dict[str, str]:
    """Modules of a BERT's queries, keys and values."""
    names = (("queries", "query"), ("keys", "key"), ("values", "value"))
    return {field: f"encoder.layer.{layer}.attention.self.{name}" for field, name in names}


def job_of(
    student: Document, layers: tuple[int, int], options: argparse.Namespace, seed: int, method: Document | None = None
) -> Document:
    """The job of a student; `layers`: the teacher's number of layers and its own."""
    layer = {role: projections(count - 1) for role, count in zip(("teacher", "student"), layers, strict=True)}
    relation = {"kind": "attention-relation", "relation_heads": HEADS, "layer": layer}
    recipe: Document = {
        "losses": [relation, {"kind": "similarity-matrix", "compare": "mse"}],
        "optimizer": {"kind": "adamw", "lr": 5e-4, "weight_decay": 0.01},
        "schedule": {"kind": "linear", "warmup_steps": options.steps // 10},
        **{"epochs": 1000, "max_steps": options.steps, "batch_size": BATCH},
    }
    data = {
        **{"train": "train", "eval": "search", "format": "csv", "delimiter": "\t", "quoted": False},
        **{"input_columns": ["one", "other"], "label_columns": ["score"], "max_length": LENGTH},
    }
    return {
        **{"task": "embedding", "data": data, "student": student, "teacher": {"model": "teacher"}, "seed": seed},
        "recipe": recipe | ({"method": method} if method else {}),
        **{"teacher_cache": {"store": "off"}, "evaluation": {"every_epochs": 1000}, "export": ["safetensors"]},
    }


def run(name: str, document: Document, teacher: Path, folder: Path) -> None:
    """Run a job, unless it has succeeded before."""
    if not (folder / name / "bundle" / "report.json").exists():
        inputs = {"train": folder / "train.tsv", "search": folder / "search.tsv", "teacher": teacher}
        train(name, document, inputs, folder / name, folder / "answers")


def similar(search: SearchFile, seed: int) -> list[SearchRow]:
    """Rows of nearly the size of the chosen one, drawn from all but that one."""
    chosen = search.rows[search.chosen]
    bounds = ((1 - SIMILAR) * chosen.parameters, (1 + SIMILAR) * chosen.parameters)
    found = [row for row in search.rows if bounds[0] <= row.parameters <= bounds[1] and row.row != chosen.row]
    return random.Random(seed).sample(found, min(DRAWN, len(found)))


def extracted(search: SearchFile, row: SearchRow, folder: Path) -> Model:
    """The sub-network of a row, from the shared weights in `folder`."""
    space = search.spaces[row.space]
    whole = Model(space.config)
    whole.network.load_state_dict(load_file(folder / space.weights))
    largest = next(each.sizes for each in search.rows if each.space == row.space)
    return SuperNetwork(space.config, [largest]).extract(whole.eval(), row.sizes)


def prepare(pairs: Sequence[tuple[str, str, float]], folder: Path, teacher: Model) -> HeldOut:
    """The pairs in the tokens of the teacher in `folder`, and what it computes for them."""
    texts = [text for one, other, _ in pairs for text in (one, other)]
    ids = load_tokenizer(folder, "teacher").encode(TextSamples(texts), LENGTH).ids
    scores = torch.tensor([score for *_, score in pairs], dtype=torch.float64)
    return HeldOut(ids, scores, teacher, [found for found, _ in _runs(teacher, ids)])


def measure(title: str, model: Model, held_out: HeldOut) -> Row:
    """Figures of a model."""
    total, count, vectors = 0.0, int((held_out.ids != 0).sum()), []
    for ids, taught, (found, outputs) in zip(
        held_out.ids.split(PART), held_out.taught, _runs(model, held_out.ids), strict=True
    ):
        vectors.append(outputs)
        one = torch.ones(())  # so that the rows' sums over their tokens are returned
        pairs = zip(found, taught, strict=True)
        total += sum(float(relation_kl(own, other, ids != 0, None, one).double().sum()) for own, other in pairs)
    spearman = spearman_correlation(pair_cosines(torch.cat(vectors)), held_out.scores)
    return Row(title, sum(weight.numel() for weight in model.parameters()), total / count, float(spearman))


@torch.no_grad()
def _runs(model: Model, ids: Tensor) -> list[tuple[list[Tensor], Tensor]]:
    """Relations of the last layer's queries, keys and values, and embeddings (n, D), part by part."""
    taps = [Tap(path=path) for path in projections(teacher_layers(model) - 1).values()]
    recorder, found = Recorder(model.network, taps), []
    for part in ids.split(PART):
        outputs = model.eval()(part)
        seen = recorder.take()
        found.append(([relations(seen[tap], HEADS) for tap in taps], outputs))
    return found


def _made(options: argparse.Namespace, searches: Sequence[SearchFile], seconds: float) -> str:
    chosen = [search.rows[search.chosen] for search in searches]
    sizes = "; ".join(f"{row.layers} layers, width {row.width}, feed-forward width {row.hidden}" for row in chosen)
    return (
        f"The teacher is `{options.teacher.parent.name}`; {options.steps} steps of {BATCH} pairs of texts on one "
        f"thread; mean and standard deviation over {len(searches)} seeds. Of {len(searches[0].rows)} sub-networks of "
        f"the sub-space `{options.space}` the best ones of up to {options.most:,} weights were: {sizes}. "
        f"The whole run took {seconds / 60:.0f} minutes."
    )


def _table(tables: Sequence[Sequence[Row]]) -> str:
    lines = ["| student | weights | relation loss | Spearman, STS-B dev |", "|---|---|---|---|"]
    for rows in zip(*tables, strict=True):
        title = "drawn at random" if rows[0].title.startswith("drawn") else rows[0].title
        weights = round(statistics.fmean(row.parameters for row in rows))
        lines.append(f"| {title} | {weights:,} | {' | '.join(mean_cells([row[2:] for row in rows]))} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.supernet", description="Compares a searched student.")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of sentence-transformers with a BERT")
    parser.add_argument("--train", type=Path, required=True, help="pairs of texts to learn from, packed by gzip")
    parser.add_argument("--eval", type=Path, required=True, help="pairs with scores to search and measure on")
    parser.add_argument("--steps", type=int, default=300, help="steps of each job")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, each with a search of its own")
    parser.add_argument("--space", choices=["base", "small", "tiny"], default="small", help="the sub-space")
    parser.add_argument("--most", type=int, default=6_500_000, help="most weights of the student")
    parser.add_argument("--work", type=Path, help="folder for finished jobs; default: a temporary one")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose table is replaced")
    return parser


if __name__ == "__main__":
    main()
