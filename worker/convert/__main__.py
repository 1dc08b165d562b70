"""`python -m worker.convert FOLDER`: the process that `worker.convert` starts; errors are printed on stdout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from worker.convert import ORDER, REFUSED, SOURCES, Unconvertible
from worker.convert.confinement import keep_to, leave_network, limit
from worker.parent import die_with_parent

ROOM = 512 << 20
"""Bytes of memory, and of the file written, independent of the size of the file read."""
GROWTH = 4
"""Memory as a multiple of the file size: once as read, once copied, and as much again for other types."""
SECONDS, SECONDS_PER_GIB = 120, 60
PROCESSOR = (Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu"))
"""Files that torch reads about the machine."""


def main() -> int:
    """Convert; returns the exit status."""
    arguments = _parser().parse_args()
    die_with_parent(arguments.parent)
    leave_network()
    try:
        _convert(arguments.folder)
    except (Unconvertible, MemoryError) as error:
        print(str(error) or "reading the file takes more memory than weights of its size need")  # noqa: T201
        return REFUSED
    return 0


def _convert(folder: Path) -> None:
    import torch  # only now: no thread may run before the network is dropped

    from app.recipe.teachers.key_map import Conversion
    from worker.convert.checkpoint import convert, expected_tensors
    from worker.students.weights import WEIGHTS, read_config

    torch.set_num_threads(1)
    conversion = Conversion.model_validate_json((folder / ORDER).read_bytes())
    expected = expected_tensors(read_config(folder))
    source = next(folder / name for name in SOURCES if (folder / name).exists())
    size = source.stat().st_size
    limit(GROWTH * size + ROOM, GROWTH * size + ROOM, SECONDS + SECONDS_PER_GIB * (size >> 30))
    keep_to(folder, {Path(sys.prefix), Path(sys.base_prefix), *_packages(), *filter(Path.exists, PROCESSOR)})
    convert(source, conversion, expected, folder / WEIGHTS)


def _packages() -> set[Path]:
    """Folders of installed packages, which one environment may borrow from another."""
    return {Path(entry) for entry in sys.path if entry.endswith("-packages") and Path(entry).is_dir()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.convert", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, metavar="PID", help="exit at once unless this is the parent process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
