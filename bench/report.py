"""The table on the screen and in the documentation."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.rows import HEADINGS, Row, markdown

PACKAGES = (
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "pydantic",
    "sqlalchemy",
    "aiosqlite",
    "psycopg",
    "obstore",
    "torch",
)


def mean_cells(results: Sequence[Sequence[float]], digits: int = 3) -> list[str]:
    """Mean and standard deviation over the rows, one for each seed, of each column."""
    columns = list(zip(*results, strict=True))
    if len(results) == 1:
        return [f"{value:.{digits}f}" for value in results[0]]
    pairs = [(statistics.fmean(column), statistics.stdev(column)) for column in columns]
    return [f"{mean:.{digits}f} ± {spread:.{digits}f}" for mean, spread in pairs]


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*row.cells(), style="bold red" if row.reached is False else None)
    console.print(table)


def write(rows: Sequence[Row], page: Path, command: str, seconds: float) -> None:
    """Write the table and its command into `page`. Raises `ValueError` if the page has no marks for it."""
    made = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, in {seconds:.0f} s, on {machine()}.\n\n{markdown(rows)}"
    replace_part(page, "measured", made)


def replace_part(page: Path, part: str, text: str) -> None:
    """Write `text` between the marks of a part of `page`. Raises `ValueError` if it has none."""
    begin, end = f"<!-- {part}: begin -->\n", f"<!-- {part}: end -->\n"
    before, begun, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"{page} has no place for {part}: {begin.strip()} and {end.strip()}")
    page.write_text(before + begin + text.rstrip() + "\n" + end + after)


def machine() -> str:
    """The machine and the versions that matter, in general words."""
    python = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"{system()}; {python}, {', '.join(versions(PACKAGES))}"


def system() -> str:
    """The kind of machine, in general words."""
    return f"{platform.system()} on {os.cpu_count()} cores ({platform.machine()})"


def versions(packages: Sequence[str]) -> list[str]:
    """Name and version of the installed packages."""
    return [f"{name} {found}" for name in packages if (found := _version(name))]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def mean_and_spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation in per cent; the value alone if there is one."""
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"
