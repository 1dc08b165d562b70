"""`python -m bench.peers [--write docs/peers.md]` compares with established engines, and prints two tables."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.peers import losses, page, runs
from bench.peers.ground import SHORT
from bench.report import replace_part, system, versions

PACKAGES = ("torch", "transformers", "trl", "liger-kernel", "sentence-transformers", "accelerate")
SHAPES = losses.Shape(256, 1000), losses.Shape(1024, 32768)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.parts or PARTS:
        begun, table = time.monotonic(), PARTS[name](options)
        made = (
            f"`python -m bench.peers {name}`, {datetime.now(UTC):%Y-%m-%d}, in {time.monotonic() - begun:.0f} s, on "
            f"{system()}, threads {options.threads}, rounds {options.rounds}; {', '.join(versions(PACKAGES))}."
        )
        print(f"{made}\n\n{table}\n", flush=True)
        if options.write:
            replace_part(options.write, name, f"{made}\n\n{table}")


def _losses(options: argparse.Namespace) -> str:
    shapes = SHAPES[:1] if options.short else SHAPES
    return page.losses_table(list(losses.compare(shapes, options.rounds)))


def _runs(options: argparse.Namespace) -> str:
    sizes = {"short": SHORT} if options.short else runs.SIZES
    return page.runs_table(list(runs.compare(sizes, options.rounds, options.threads)))


PARTS = {"losses": _losses, "runs": _runs}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Compares with established engines.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", choices=[[], *PARTS], help=f"of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of everything, all in turn")
    parser.add_argument("--threads", type=int, default=1, help="of every engine")
    parser.add_argument("--short", action="store_true", help="tiny sizes: shows that it runs; the times mean little")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose tables are replaced")
    return parser


if __name__ == "__main__":
    main()
