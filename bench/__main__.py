"""`python -m bench [PART …]` measures and prints one table, and writes it into a page with `--write`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from bench import download, footprint, read, recovery, relay, report, start, submit
from bench.rows import Row

PARTS = {
    "start": start,
    "recovery": recovery,
    "read": read,
    "submit": submit,
    "relay": relay,
    "download": download,
    "footprint": footprint,
}


def main() -> None:
    """Run the selected parts. A missed target is reported, and is no failure."""
    arguments = _parser().parse_args()
    for name in [name for name in os.environ if name.startswith("STILLHOUSE_")]:
        del os.environ[name]  # the service is measured with its default settings
    progress, begin, rows = Console(stderr=True, highlight=False), time.monotonic(), list[Row]()
    for name in arguments.parts or PARTS:
        for row in PARTS[name].measure(PARTS[name].SHORT if arguments.short else PARTS[name].FULL):
            progress.print(" | ".join(filter(None, row.cells())), markup=False, soft_wrap=True)
            rows.append(row)
    report.show(rows, Console(width=None if sys.stdout.isatty() else 160))
    if arguments.write:
        report.write(rows, arguments.write, "python -m bench", time.monotonic() - begin)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measures how fast and how small the service is."
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", choices=[[], *PARTS], help=f"of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--short", action="store_true", help="tiny sizes: shows that it runs; the figures mean little")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose table is replaced")
    return parser


if __name__ == "__main__":
    main()
