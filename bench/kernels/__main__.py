"""`python -m bench.kernels [--write docs/performance.md]` measures the kernels on this processor, and prints tables.

Contenders take turns in one process, in float32 on all cores; medians count. A target that is missed is stated, and is
no failure; a loss of ours that is another one is.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.kernels import page, plans
from bench.kernels.heads import OURS
from bench.report import replace_part, system, versions

PACKAGES = ("torch", "liger-kernel", "trl", "triton")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page with `--write`."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    plan, begun = plans.processor(options.short), time.monotonic()
    machine = plan.rates()
    held = list(plans.held(plan, machine, options.seconds))
    made = (
        f"`make bench-kernels`, {datetime.now(UTC):%Y-%m-%d}, in {time.monotonic() - begun:.0f} s, on {system()}, "
        f"threads {torch.get_num_threads()}; {', '.join(versions(PACKAGES))}. {page.rates(machine)}"
    )
    text = "\n\n".join((made, *(each.section for each in held)))
    print(text)
    if options.write:
        replace_part(options.write, "kernels", text)
    if wrong := [each.fault for each in held if each.fault]:
        raise SystemExit(f"{OURS} {wrong[0]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description="Measures the kernels.")
    parser.add_argument("--short", action="store_true", help="tiny sizes: shows that it runs; the figures mean little")
    parser.add_argument("--seconds", type=float, default=60.0, help="roughly, for each contest")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; default: one for each core")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose tables are replaced")
    return parser


if __name__ == "__main__":
    main()
