"""`python -m worker.trainer job.yaml --out FOLDER` trains without the service; `--spare` waits for a supervisor."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn


def main() -> int:
    """Run either form; the exit code."""
    arguments = _parser().parse_args()
    if arguments.spare:
        _serve(arguments.parent)
    if arguments.job is None or arguments.out is None:
        _parser().error("a job file and --out are needed")
    from worker.trainer.witness import continue_in_child

    continue_in_child(arguments.out)
    from worker.trainer.standalone import train_file  # torch takes seconds: not for --help

    return train_file(arguments.job, arguments.out, arguments.cache)


def _serve(parent: int | None) -> NoReturn:
    from worker.parent import die_with_parent
    from worker.trainer.service import Channel, serve

    die_with_parent(parent)
    serve(Channel())
    sys.stderr.flush()
    os._exit(0)  # shutting down the interpreter with torch costs 0.8 s, and nothing is left to do


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.trainer", description=__doc__)
    parser.add_argument("job", nargs="?", type=Path, help="job file, YAML or JSON; its references are relative paths")
    parser.add_argument(
        "--out", type=Path, help="folder for checkpoints and bundle; with an existing one, training resumes"
    )
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="cache of teacher outputs, shared with other runs")
    parser.add_argument("--spare", action="store_true", help="speak the supervisor's protocol on stdin and stdout")
    parser.add_argument("--parent", type=int, metavar="PID", help="exit at once unless this is the parent process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
