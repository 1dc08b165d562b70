"""Holds this package against a folder of golden vectors: `python -m tests.golden FOLDER`.

Prints a line for every kind in every case: the worst relative error of its values and of its gradients, and whether
they are close enough. Files of methods that are not known, or of another layout, are listed as such. The exit code is 1
when anything is off, 2 when the folder holds no vectors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from tests.golden import Case, NothingToCompare, UnknownLayout, read_cases, read_method
from tests.golden.comparison import Comparison
from tests.golden.methods import METHODS

LINE = "{:20} {:18} {:36} {:>9} {:>9}  {}"


def main(arguments: Sequence[str]) -> int:
    """Check the one folder named; the exit code."""
    if len(arguments) != 1 or not (files := sorted(Path(arguments[0]).glob("*.npz"))):
        print("usage: python -m tests.golden FOLDER, a folder with .npz files of golden vectors", file=sys.stderr)
        return 2
    print(LINE.format("method", "kind", "case", "values", "gradients", ""))
    known = [checked for path in files if (checked := check_file(path)) is not None]
    compared, failed = (sum(column) for column in zip((0, 0), *known, strict=True))
    print(f"{compared} checks, {failed} failed; {len(files) - len(known)} files not known")
    return 1 if failed else 0


def check_file(path: Path) -> tuple[int, int] | None:
    """Number of checks printed for the cases of a file, and how many of them failed; None when it is not known."""
    try:
        method = read_method(path)
    except UnknownLayout as error:
        print(f"{path.stem:20} of another layout: {error}")
        return None
    if method not in METHODS:
        print(f"{method:20} not known")
        return None
    lines = [line for case in read_cases(path) for line in check_case(case)]
    return len(lines), lines.count(False)


def check_case(case: Case) -> list[bool]:
    """Print a line for every kind in a case; whether each passed."""
    try:
        compared = sorted(METHODS[case.method](case), key=lambda comparison: comparison.kind)
    except NothingToCompare as reason:
        print(LINE.format(case.method, "", case.name, "", "", f"skipped: {reason}"))
        return []
    except Exception as error:  # whatever a stranger's file makes the code do is a failed check, not the end of the run
        print(LINE.format(case.method, "", case.name, "", "", f"FAILED: {type(error).__name__}: {error}"))
        return [False]
    if not compared:
        print(LINE.format(case.method, "", case.name, "", "", "FAILED: has no output to compare with"))
    groups = groupby(compared, key=lambda comparison: comparison.kind)
    return [print_line(case, kind, list(group)) for kind, group in groups] or [False]


def print_line(case: Case, kind: str, compared: Sequence[Comparison]) -> bool:
    """One line of the table; whether all passed."""
    failed = [comparison.output for comparison in compared if not comparison.passes]
    values, gradients = (worst(c.error for c in compared if c.is_gradient == which) for which in (False, True))
    print(
        LINE.format(
            case.method, kind, case.name, values, gradients, f"FAILED: {', '.join(failed)}" * bool(failed) or "ok"
        )
    )
    return not failed


def worst(errors: Iterable[float]) -> str:
    """The largest, in writing."""
    found = [error if error == error else float("inf") for error in errors]
    return f"{max(found):.1e}" if found else "-"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
