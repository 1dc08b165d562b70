"""Generates `stillhouse/synchronous` from `stillhouse/asynchronous`: the same client without `await`.

`python scripts/sync_client.py` writes it; with `--check`, nothing is written and the exit code is 1 if it is not what
would be written. Run it after each change of the asynchronous client.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, TARGET = ROOT / "stillhouse" / "asynchronous", ROOT / "stillhouse" / "synchronous"
NOTE = "# Generated from stillhouse/asynchronous/{name} by scripts/sync_client.py; change that and run it again.\n"
RULES = [
    (r"\bawait asyncio\.to_thread\(\s*([\w.]+)\)", r"\1()"),
    (r"\bawait asyncio\.to_thread\(\s*([\w.]+),\s*", r"\1("),
    (r"^import asyncio\n", ""),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\bAwaitable, ", ""),
    (r"\b(?:async|await) ", ""),
    (r"\benter_async_context\b", "enter_context"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\ba(close|read|iter_lines|iter_bytes)\b", r"\1"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basynchronous\b", "synchronous"),
]
"""Patterns and what takes their place, in this order; docstrings are changed with the code."""
SORT = ("check", "--fix-only", "--quiet", "--select=I", "--config=lint.isort.known-first-party=['stillhouse']")
"""Sorts imports; without its name, Ruff knows the package by files that may not be there yet."""
INIT = '"""The blocking client, generated from `stillhouse.asynchronous` by `scripts/sync_client.py`."""\n'


def converted(name: str, source: str) -> str:
    """The blocking form of a module, formatted."""
    for pattern, replacement in RULES:
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    return formatted(INIT if name == "__init__.py" else NOTE.format(name=name) + source)


def formatted(source: str) -> str:
    """The source with sorted imports and in the project's format."""
    for words in (SORT, ("format", "--quiet")):
        command = [sys.executable, "-m", "ruff", *words, "--stdin-filename", TARGET / "module.py", "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603 - all of it stands here
        source = done.stdout
    return source


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    wanted = {path.name: converted(path.name, path.read_text()) for path in sorted(SOURCE.glob("*.py"))}
    present = {path.name: path.read_text() for path in sorted(TARGET.glob("*.py"))}
    if check:
        for name in sorted(wanted.keys() | present.keys()):
            if wanted.get(name) != present.get(name):
                sys.stderr.write(f"{TARGET.relative_to(ROOT) / name} is out of date: run scripts/sync_client.py\n")
        return int(wanted != present)
    for name in present.keys() - wanted.keys():
        (TARGET / name).unlink()
    TARGET.mkdir(exist_ok=True)
    for name, source in wanted.items():
        (TARGET / name).write_text(source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
