"""Writes the picture of imports between rooms into docs/architecture.md: `python -m scripts.imports_picture`.

A room is a package or module right below `app`, `stillhouse` or `worker`. An arrow is an import, also one inside a
function; arrows that follow from others are left out. Rooms that import each other stay together in the picture, joined
by arrows both ways.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- imports: begin -->", "<!-- imports: end -->"
PACKAGES = ("app", "stillhouse", "worker")

Arrows = Mapping[str, set[str]]


def room_of(module: str) -> str:
    """The first two parts of a module's name."""
    return ".".join(module.split(".")[:2])


def arrows() -> dict[str, set[str]]:
    """By each room, the rooms that it imports; `__init__` of a package of ours counts as no room."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    found: dict[str, set[str]] = {room_of(module): set() for module in sorted(graph.modules) if module not in PACKAGES}
    for module in graph.modules:
        imported = {room_of(each) for each in graph.find_modules_directly_imported_by(module)}
        found.get(room_of(module), set()).update(imported & found.keys() - {room_of(module)})
    return found


def circle(of: Arrows) -> list[str]:
    """Rooms that import each other in a circle, the first of them again at its end; empty where there is none."""
    try:
        TopologicalSorter(of).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def reachable(of: Arrows, start: str) -> set[str]:
    """Rooms that `start` imports, itself or through others."""
    found: set[str] = set()
    waiting = list(of[start])
    while waiting:
        room = waiting.pop()
        if room not in found:
            found.add(room)
            waiting.extend(of[room])
    return found


def reduced(of: Arrows) -> dict[str, set[str]]:
    """Without the arrows that follow from others; a room's arrows within a circle neither go nor stand for others."""
    below = {room: reachable(of, room) for room in of}

    def follows(room: str, aim: str) -> bool:
        over = {by for by in of[room] if room not in below[by] and by not in below[aim]}
        return room not in below[aim] and any(aim in below[by] for by in over)

    return {room: {aim for aim in aims if not follows(room, aim)} for room, aims in of.items()}


def picture(of: Arrows) -> str:
    """A Mermaid graph, with a frame around the rooms of each package."""
    lines = ["```mermaid", "graph TD"]
    for package in PACKAGES:
        rooms = sorted(room for room in of if room.startswith(f"{package}."))
        names = [f"        {room}[{room.removeprefix(f'{package}.')}]" for room in rooms]
        lines += [f"    subgraph {package}_[{package}]", *names, "    end"]
    lines += [f"    {room} --> {aim}" for room, aims in sorted(reduced(of).items()) for aim in sorted(aims)]
    return "\n".join([*lines, "```"])


def with_picture(page: str, of: Arrows) -> str:
    """The page with the picture between its two marks; raises ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.relative_to(ROOT)}: takes the picture between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{picture(of)}\n{END}{after}"


def main() -> int:
    """Write the page; the exit status is 1 where rooms import each other in a circle."""
    found = arrows()
    PAGE.write_text(with_picture(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    if rooms := circle(found):
        sys.stderr.write(f"rooms that import each other in a circle: {' -> '.join(rooms)}\n")
    return int(bool(circle(found)))


if __name__ == "__main__":
    sys.exit(main())
