"""`python -m bench.gpu [--out FOLDER]` measures the kernels on this machine's CUDA device, by one command.

First the contests of the losses, then steps of the optimizers with kernels, compared with torch's fused AdamW. It
writes `gpu.json` (every turn, with machine, versions and commit) and `gpu.md` (the tables) after each contest, because
a rented machine may be lost. It fails without CUDA.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import optimizers
from bench.kernels import page, plans
from bench.kernels.contest import Machine
from bench.kernels.heads import OURS
from bench.kernels.plans import OpenEntry, Plan
from bench.report import system, versions
from bench.rows import Row, markdown

PACKAGES = ("torch", "triton", "liger-kernel", "trl", "transformers")
ROUNDS, SHORT_ROUNDS = 30, 2
"""Rounds of the optimizers."""
ROOT = Path(__file__).parent.parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write. Raises SystemExit without a CUDA device, or if this project's loss is wrong."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit(
            f"bench-gpu needs a CUDA device, and torch {torch.__version__} sees none; nothing was measured"
        )
    steps = partial(optimizers.measure, optimizers.PROJECTED, SHORT_ROUNDS if options.short else ROUNDS, "cuda")
    held = measure(plans.cuda(options.short), options.out, options.seconds, device_facts(), steps)
    if wrong := [each.fault for each in held if each.fault]:
        raise SystemExit(f"{OURS} {wrong[0]}")


def measure(
    plan: Plan, out: Path, seconds: float, device: dict[str, Any], steps: Callable[[], Iterable[Row]]
) -> list[OpenEntry]:
    """Run every contest of `plan`, then the `steps` of optimizers, and write the results to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    begun, machine, held = time.monotonic(), plan.rates(), list[OpenEntry]()

    def write_all(rows: Sequence[Row]) -> None:
        facts = {**machine_facts(), **device, "seconds": round(time.monotonic() - begun, 1)}
        write(out, facts, machine, held, rows)

    for each in plans.held(plan, machine, seconds):
        held.append(each)
        write_all(())
    write_all(list(steps()))
    return held


def write(out: Path, facts: dict[str, Any], machine: Machine, held: Sequence[OpenEntry], steps: Sequence[Row]) -> None:
    """Write both files."""
    contests, rows = [each.data for each in held], [dataclasses.asdict(row) for row in steps]
    document = {**facts, "machine": machine._asdict(), "contests": contests, "optimizers": rows}
    (out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
    made = ", ".join(f"{name} {value}" for name, value in facts.items())
    sections = [each.section for each in held]
    if steps:
        sections.append(f"**Steps of optimizers**, float32\n\n{markdown(steps)}".rstrip())
    (out / "gpu.md").write_text("\n\n".join((f"`make bench-gpu`: {made}. {page.rates(machine)}", *sections)) + "\n")


def machine_facts() -> dict[str, Any]:
    """Machine and versions, which figures depend on."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
        "system": system(),
        "python": platform.python_version(),
        "versions": ", ".join(versions(PACKAGES)),
    }


def device_facts() -> dict[str, Any]:
    """The CUDA device in use."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 1e9:.0f} GB",
        "cuda": torch.version.cuda,
        "driver": _output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "unknown",
    }


def commit() -> str:
    """Commit of the code; with `changed` if files differ, `unknown` outside a repository."""
    found = _output_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    changed = _output_of(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{found} changed" if found and changed else found or "unknown"


def _output_of(command: Sequence[str]) -> str:
    """The first line of a program's output; empty if it fails or is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError:
        return ""
    return (done.stdout.strip().splitlines() or [""])[0] if done.returncode == 0 else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measures the kernels on a CUDA device.")
    parser.add_argument("--short", action="store_true", help="tiny sizes: shows that it runs; the figures mean little")
    parser.add_argument("--seconds", type=float, default=15.0, help="roughly, for each contest")
    parser.add_argument("--out", type=Path, default=Path("bench-output"), help="folder for gpu.json and gpu.md")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
