"""Digests name content, and all of it."""

from __future__ import annotations

from pathlib import Path

import torch

from worker.data.batches import whole_split
from worker.teachers.digests import ROWS, digest_folder, digest_samples


def write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def digest(inputs: dict[str, torch.Tensor]) -> str:
    return digest_samples(whole_split(inputs, torch.zeros(len(next(iter(inputs.values()))))))


def test_a_copy_of_a_folder_has_its_digest(tmp_path: Path) -> None:
    files = {"weights": "w", "config": "c", "tokenizer__vocabulary": "v"}
    assert digest_folder(write(tmp_path / "a", **files)) == digest_folder(write(tmp_path / "b", **files))


def test_a_changed_renamed_moved_or_added_file_changes_the_digest(tmp_path: Path) -> None:
    folders = [
        {"weights": "w", "config": "c"},
        {"weights": "W", "config": "c"},
        {"weight": "w", "config": "c"},
        {"sub__weights": "w", "config": "c"},
        {"weights": "w", "config": "c", "more": ""},
        {"weights": "c", "config": "w"},
    ]
    digests = {digest_folder(write(tmp_path / str(number), **files)) for number, files in enumerate(folders)}
    assert len(digests) == len(folders)


def test_samples_differ_in_view_type_shape_order_and_value() -> None:
    table = torch.arange(12, dtype=torch.float32).view(3, 4)
    changed = table.clone()
    changed[2, 3] += 1e-6
    variants = [
        {"table": table},
        {"other": table},
        {"table": table.double()},
        {"table": table.view(4, 3)},
        {"table": table.flip(0)},
        {"table": changed},
        {"table": table, "tokens": torch.ones(3, 2, dtype=torch.int64)},
    ]
    assert len({digest(inputs) for inputs in variants}) == len(variants)


def test_how_samples_lie_in_memory_does_not_matter() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    last = images.contiguous(memory_format=torch.channels_last)
    assert digest({"images": images}) == digest({"images": last})


def test_more_samples_than_are_read_at_a_time_change_the_digest() -> None:
    table = torch.zeros(2 * ROWS + 1, 1)
    changed = table.clone()
    changed[-1] = 1
    assert digest({"table": table}) != digest({"table": changed})
