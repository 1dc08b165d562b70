"""What a worker process gives to the attempts that it makes."""

from __future__ import annotations

from pathlib import Path

from tests.worker.supervisor.stage import HASTE, scripted, settings_for
from worker.protocol import CachePlace
from worker.supervisor.context import open_context


async def test_trainers_keep_what_teachers_say_in_the_data_folder(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, teacher_cache_bytes=1000)
    async with open_context(settings, ["any"], scripted("start"), HASTE) as context:
        place = CachePlace(folder=str(tmp_path / "cache" / "teachers"), max_bytes=1000, owner="proj_a")
        assert context.teacher_cache("proj_a") == place


async def test_caches_may_lie_elsewhere(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data", cache_dir=tmp_path / "fast")
    async with open_context(settings, ["any"], scripted("start"), HASTE) as context:
        place = context.teacher_cache("proj_a")
        assert place is not None
        assert place.folder == str(tmp_path / "fast" / "teachers")


async def test_no_bytes_means_no_cache(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, teacher_cache_bytes=0)
    async with open_context(settings, ["any"], scripted("start"), HASTE) as context:
        assert context.teacher_cache("proj_a") is None
