"""What is read on this machine before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse import BadRequest, documents

CONFIG = {"architecture": {"architecture": "mlp"}, "classes": 2}


def test_a_file_of_weights_is_described_by_its_config_or_by_an_object_that_holds_it(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"name": None, "checkpoint_key": None, "key_map": None}
    assert documents.registration(CONFIG, **nothing) == {"config": CONFIG}
    whole = {"config": CONFIG, "name": "theirs", "key_map": "torchvision-resnet"}
    assert documents.registration(whole, **nothing) == whole
    given: dict[str, Any] = {"name": "mine", "checkpoint_key": "state_dict", "key_map": Path("torchvision-resnet")}
    told = {"config": CONFIG, "name": "mine", "checkpoint_key": "state_dict", "key_map": "torchvision-resnet"}
    assert documents.registration(CONFIG, **given) == told
    (tmp_path / "map.yaml").write_text("strip: [module.]")
    renamed = documents.registration(whole, **{**nothing, "key_map": tmp_path / "map.yaml"})
    assert renamed["key_map"] == {"strip": ["module."]}
    with pytest.raises(BadRequest, match="licence: is not a known key"):
        documents.registration({"config": CONFIG, "licence": "MIT"}, **nothing)
