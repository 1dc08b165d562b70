"""A teacher that somebody else trained: a student for CIFAR-10 distilled from a checkpoint of torch.save.

python examples/cifar10.py --data cifar10.npz --checkpoint resnet56-4bfd9763.th

The archive has the images of CIFAR-10 as `x_train`, `y_train`, `x_test` and `y_test`; the checkpoint is the ResNet-56
of the public repository akamaster/pytorch_resnet_cifar10. Nothing is downloaded. The checkpoint is uploaded as it is,
with the names that its weights have here (`teachers/cifar-resnet56.yaml`); the worker converts it, confined.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from archives import write_parts
from session import HERE, alone, fetch, finish, options_of, play, read_job, report_of, say, show, submit

from stillhouse import Client, StoredModel, documents

TEACHER = HERE / "teachers" / "cifar-resnet56.yaml"
JOB = "cifar10.yaml"


def main() -> int:
    parser = options_of("Distils a small network for CIFAR-10 from one that was trained elsewhere.", "cifar10-output")
    parser.add_argument("--data", type=Path, required=True, help="archive with x_train, y_train, x_test and y_test")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the teacher's weights, as torch.save wrote them"
    )
    parser.add_argument("--teacher-depth", type=int, default=56, help="weighted layers of the teacher")
    parser.add_argument("--depth", type=int, default=20, help="weighted layers of the student")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--images", type=int, help="training images, the first ones; all when not given")
    return play(parser.parse_args(), run)


def run(client: Client, options: argparse.Namespace) -> None:
    """Data, teacher, both students, table."""
    data = options.output / "data"
    train, test = write_parts(options.data, data, "cifar10", options.images).counts
    say(f"{train:,} images to learn from, {test:,} to be measured on.")
    teacher = register(client, options.checkpoint, options.teacher_depth)
    say(f"The teacher is {teacher.id}, of {teacher.parameters:,} parameters.")

    sizes = f"student.depth={options.depth}", f"recipe.epochs={options.epochs}"
    distilled = read_job(JOB, f"teacher.model={teacher.id}", *sizes)
    jobs = finish(client, [submit(client, job, data) for job in (distilled, alone(distilled))])
    for job in jobs:
        fetch(client, job, options.output / "models")
    with_teacher, without = (report_of(client, job) for job in jobs)
    rows = {"teacher": with_teacher["teacher"], "distilled": with_teacher["student"], "alone": without["student"]}
    show(rows, with_teacher["samples"]["eval"])


def register(client: Client, checkpoint: Path, depth: int) -> StoredModel:
    """Upload the checkpoint, and make a model of it as `teachers/cifar-resnet56.yaml` says."""
    words = documents.read(TEACHER, [f"config.architecture.depth={depth}"])
    return client.register_model(client.upload(checkpoint).id, **words)


if __name__ == "__main__":
    sys.exit(main())
