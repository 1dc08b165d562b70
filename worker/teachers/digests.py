"""Content digests: equal digests mean the same teacher, or the same samples."""

from __future__ import annotations

from hashlib import file_digest, sha256
from pathlib import Path

import torch

from worker.data.batches import Batch

ROWS = 1024
"""Samples read at a time."""


def digest_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below `folder`: a model's weights, its config and all other
    files that may change its outputs."""
    whole = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()


def digest_samples(samples: Batch) -> str:
    """SHA-256 over the samples (N, ...) of a split as models read them, of any dtype, input key by input key, without
    their targets.

    Reads about 1.6 GB a second; samples on a GPU are copied to the CPU, some at a time.
    """
    whole = sha256()
    for input_key, values in sorted(samples.inputs.items()):
        whole.update(f"{input_key}\0{values.dtype}\0{tuple(values.shape)}\n".encode())
        for part in samples.parts(ROWS):
            whole.update(part.inputs[input_key].detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return whole.hexdigest()
