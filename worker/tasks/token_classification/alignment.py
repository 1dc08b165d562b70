"""From the tags of words to targets of tokens.

N texts of S tokens. The first token of a word bears its tag; all other tokens, special ones and padding are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from worker.tensors import IGNORED


def tags_of_pieces(rows: Sequence[Sequence[bool]], tags: Tensor, longest: int) -> Tensor:
    """Tags (N, 1 + P) int64 of the pieces of texts: in the first column how many words a text has, then the tag of the
    word that each of its pieces begins, `IGNORED` where it begins none.

    `rows` are, by text, which of its pieces begin a word, and `tags` (n,) int64 those of all that do. At most `longest`
    pieces are kept of each text: a model reads no more tokens, and a piece takes one at least.
    """
    lengths = np.array([len(row) for row in rows])
    begins = np.fromiter(chain.from_iterable(rows), bool, int(lengths.sum()))
    text = np.repeat(np.arange(len(rows)), lengths)
    place = np.arange(len(begins)) - np.repeat(lengths.cumsum() - lengths, lengths)
    width = min(longest, int(lengths.max()))
    found = torch.full((len(rows), 1 + width), IGNORED)
    found[:, 0] = torch.from_numpy(np.bincount(text[begins], minlength=len(rows)))
    kept = torch.from_numpy(place[begins] < width)
    at = (torch.from_numpy(text[begins])[kept], 1 + torch.from_numpy(place[begins])[kept])
    return found.index_put_(at, tags[kept])


def align_tags(pieces: Tensor, words: Tensor, full: Tensor) -> tuple[Tensor, int, int]:
    """Targets (N, S) int64 of tokens; how many words have no token because their text was cut off; and how many have
    none although it was not, since the tokenizer drops their characters.

    `pieces` are as `tags_of_pieces` gives them, `words` (N, S) integers tell which piece each token is part of, -1
    where it is part of none, and `full` (N,) bool which texts have as many tokens as a model reads.
    """
    counts, tags = pieces[:, 0], pieces[:, 1:]
    reached = words.long().cummax(1).values
    before = torch.cat((reached.new_full((len(reached), 1), -1), reached[:, :-1]), 1)
    begins = (words > before) & (words < tags.shape[1])
    targets = tags.gather(1, words.long().clamp(0, tags.shape[1] - 1)).where(begins, IGNORED)
    passed = ((tags != IGNORED) & (torch.arange(tags.shape[1]) <= reached[:, -1:])).sum(1)
    cut = int((counts - passed)[full].sum())
    return targets, cut, int(counts.sum()) - cut - int((targets != IGNORED).sum())


def lost_notes(cut: int, dropped: int, of: int, param: str) -> Iterator[str]:
    """What is said of words without a token."""
    if cut:
        yield f"{cut} of {of} words of {param} are beyond data.max_length, and their tags count for nothing"
    if dropped:
        yield f"{dropped} of {of} words of {param} have no token, and their tags count for nothing"
