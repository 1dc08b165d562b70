"""Matching of two lists of classes: by their names, or by their numbers if neither list has names.

Files, models and the contract may each have the classes in a different order. Every comparison of two lists uses this
module; lists are never compared by position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, StringConstraints

SHOWN = 20
"""Most names of a list in a message."""
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


def _differ(names: list[str]) -> list[str]:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"names the class {twice[0]!r} twice")
    return names


ClassOrder = Annotated[list[ClassName], Field(min_length=2, max_length=100_000), AfterValidator(_differ)]
"""Names of classes in the order of their numbers."""


@dataclass(frozen=True)
class ClassList:
    """The classes of a file or a model, in the order of their numbers."""

    whose: str
    """For messages: the field that names the file or the model."""
    count: int
    names: Sequence[str] | None = None
    """None: the classes have only numbers, from 0."""

    @property
    def shown(self) -> str:
        """The first names, or the numbers, for messages."""
        return f"the numbers 0 to {self.count - 1}" if self.names is None else shown_names(self.names)


class ClassMatch(NamedTuple):
    """Positions of the classes of one list in another."""

    places: list[int]
    """For each class of the first list, its number in the second."""
    note: str | None = None
    """For the log: names that were matched although they are written differently; none: there are none."""


class ClassMismatch(ValueError):
    """One list lacks classes of the other; the text has both lists and the difference."""

    def __init__(self, why: str, wanted: ClassList, there: ClassList) -> None:
        lists = f"classes of {wanted.whose}: {wanted.shown}; of {there.whose}: {there.shown}"
        super().__init__(f"{why} ({lists})")


def match_classes(wanted: ClassList, there: ClassList) -> ClassMatch:
    """Find every class of `wanted` in `there`, which may have more if it has names.

    Names match if they are equal, or if they are the only ones of their lists that are equal up to capitals, outer
    spaces and leading zeros. Numbers match by value, also if the other list has names that are whole numbers.
    Raises ClassMismatch.
    """
    if wanted.names is None and there.names is None:
        if wanted.count != there.count:
            counts = f"{wanted.whose} has {wanted.count} classes, {there.whose} has {there.count}"
            raise ClassMismatch(f"{counts}, and there are no names to match them by", wanted, there)
        return ClassMatch(list(range(wanted.count)))
    for numbers, named in ((wanted, there), (there, wanted)):
        if numbers.names is None and not all(name.strip().isdecimal() for name in named.names or ()):
            raise ClassMismatch(f"{named.whose} has names, {numbers.whose} has numbers", wanted, there)
    ours, theirs = _names(wanted), _names(there)
    if list(ours) == list(theirs):
        return ClassMatch(list(range(len(ours))))
    find = _Finder(ours, theirs)
    found = {name: find.place(name) for name in ours}
    if missing := [name for name, place in found.items() if place is None]:
        raise ClassMismatch(_difference(missing, set(found.values()), wanted, there), wanted, there)
    pairs = [f"{name!r} is {theirs[place]!r}" for name, place in found.items() if place is not None]
    pairs = [pair for pair, (name, place) in zip(pairs, found.items(), strict=True) if name != theirs[place or 0]]
    both = wanted.names is not None and there.names is not None
    note = f"names that {wanted.whose} and {there.whose} write differently: {_cut(pairs)}" if pairs and both else None
    return ClassMatch([place for place in found.values() if place is not None], note)


def _difference(missing: list[str], found: set[int | None], wanted: ClassList, there: ClassList) -> str:
    theirs = _names(there)
    several = [name for name in missing if sum(fold(name) == fold(other) for other in theirs) > 1]
    if several:
        return f"more than one class of {there.whose} may be {shown_names(several)}"
    rest = [name for number, name in enumerate(theirs) if number not in found]
    other = f", only {there.whose} has {shown_names(rest)}" if rest else ""
    return f"only {wanted.whose} has {shown_names(missing)}{other}"


class _Finder:
    """Finds names in a list: exactly, or else by their normalised form."""

    def __init__(self, ours: Sequence[str], theirs: Sequence[str]) -> None:
        exact, folded = Counter(theirs), Counter(map(fold, theirs))
        self._exact = {name: place for place, name in enumerate(theirs) if exact[name] == 1}
        taken = {name for name in ours if name in self._exact}
        self._ours = Counter(map(fold, ours))
        self._folded = {
            fold(name): place for place, name in enumerate(theirs) if folded[fold(name)] == 1 and name not in taken
        }

    def place(self, name: str) -> int | None:
        """Number of the class with this name; none: there is none, or it is ambiguous."""
        if name in self._exact:
            return self._exact[name]
        return self._folded.get(fold(name)) if self._ours[fold(name)] == 1 else None


def fold(name: str) -> str:
    """The normalised form of a name: without capitals, outer spaces and the leading zeros of a number."""
    plain = name.strip().casefold()
    return str(int(plain)) if plain.isdecimal() and len(plain) < 20 else plain


def shown_names(names: Iterable[str]) -> str:
    """The first names, for a message."""
    return _cut([repr(name if len(name) <= 60 else name[:57] + "...") for name in names])


def _cut(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _names(classes: ClassList) -> Sequence[str]:
    return classes.names if classes.names is not None else [str(number) for number in range(classes.count)]
