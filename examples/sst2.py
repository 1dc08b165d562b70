"""Sentiment with the Transformers library: a teacher, a student that learns from it, and one that is made of it.

python examples/sst2.py --train train.tsv.gz --eval dev.tsv.gz [--teacher FOLDER]

The files have a header line and two columns, `sentence` and `label`, set apart by tabs (plain, or packed by gzip), as
in the SST-2 of GLUE. The teacher is a folder in the Hugging Face layout with a BERT that tells two classes apart and
its tokenizer; without one, a small BERT learns from scratch first. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from session import ExampleError, alone, fetch, finish, options_of, play, read_job, report_of, say, show, submit

from app.recipe.students.hugging_face import is_model_file
from stillhouse import Client

TRAIN, EVAL = "sst2.tsv.gz", "sst2-dev.tsv.gz"
MADE_HERE = 4
"""Layers of the teacher in `sst2-teacher.yaml`."""
RELATION = 2
"""Number of the loss in `sst2.yaml` that looks at the teacher's last layer."""
PACKED = b"\x1f\x8b"
"""First bytes of a file packed by gzip."""


def main() -> int:
    parser = options_of("Distils small networks for sentiment from a BERT.", "sst2-output")
    parser.add_argument("--train", type=Path, required=True, help="sentences to learn from")
    parser.add_argument("--eval", type=Path, required=True, help="sentences to be measured on")
    parser.add_argument("--teacher", type=Path, help="folder in the Hugging Face layout; else a BERT learns first")
    parser.add_argument("--rows", type=int, help="sentences to learn from, the first ones; all when not given")
    parser.add_argument("--epochs", type=int, help="of every job; its own when not given")
    return play(parser.parse_args(), run)


def run(client: Client, options: argparse.Namespace) -> None:
    """Data, teacher, students, table."""
    data = options.output / "data"
    count = write_rows(options.train, data / TRAIN, options.rows)
    say(f"{count:,} sentences to learn from, {write_rows(options.eval, data / EVAL):,} to be measured on.")
    epochs = (f"recipe.epochs={options.epochs}",) if options.epochs else ()
    teacher = register(client, options.teacher) if options.teacher else train(client, data, epochs)
    layers = depth_of(options.teacher) if options.teacher else MADE_HERE

    learning = f"teacher.model={teacher}", *epochs
    small = read_job("sst2.yaml", *learning, *places_in(layers))
    shrunk = read_job("sst2-shrink.yaml", *learning, f"student.layers={layers // 2}")
    jobs = finish(client, [submit(client, job, data) for job in (small, alone(small), shrunk)])
    for job in jobs:
        fetch(client, job, options.output / "models")
    distilled, without, copied = (report_of(client, job) for job in jobs)
    rows = {
        "teacher": distilled["teacher"],
        "distilled": distilled["student"],
        "the same, alone": without["student"],
        "half the teacher": copied["student"],
    }
    show(rows, distilled["samples"]["eval"])


def write_rows(source: Path, target: Path, most: int | None = None) -> int:
    """Copy the header and at most `most` rows into a packed file; how many rows those were."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        packed = file.read(len(PACKED)) == PACKED
    with gzip.open(source) if packed else source.open("rb") as rows, gzip.GzipFile(target, "wb", mtime=0) as copy:
        lines = list(islice(rows, None if most is None else most + 1))
        copy.writelines(lines)
    return len(lines) - 1


def depth_of(folder: Path) -> int:
    """Layers of the BERT in a folder: the losses of `sst2.yaml` look into one."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert":
        raise ExampleError(f"{folder} has a model of type {config.get('model_type')}; this example takes a bert")
    return int(config.get("num_hidden_layers", 12))


def places_in(layers: int) -> Iterator[str]:
    """What `sst2.yaml` must say for a teacher of so many layers."""
    for what, module in (("queries", "query"), ("keys", "key"), ("values", "value")):
        path = f"bert.encoder.layer.{layers - 1}.attention.self.{module}"
        yield f"recipe.losses[{RELATION}].layer.teacher.{what}={path}"


def register(client: Client, folder: Path) -> str:
    """Upload a folder in the Hugging Face layout; the id of the model that it becomes."""
    files = {path.name: client.upload(path).id for path in sorted(folder.iterdir()) if is_model_file(path.name)}
    return client.register_folder(files, name=folder.name).id


def train(client: Client, data: Path, changes: tuple[str, ...]) -> str:
    """Train the teacher; its id."""
    say("The teacher learns from the labels:")
    [job] = finish(client, [submit(client, read_job("sst2-teacher.yaml", *changes), data)])
    return str(job.model_id)


if __name__ == "__main__":
    sys.exit(main())
