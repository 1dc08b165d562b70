"""What memory there is."""

from __future__ import annotations

from pathlib import Path

from worker.memory import available_bytes

MIB = 1 << 20


def written(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def test_a_container_may_have_less_than_its_machine(tmp_path: Path) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text(f"MemTotal: {9 * MIB} kB\nMemAvailable:    {4 * MIB} kB\n")
    stat = f"anon 7\ninactive_file {MIB}\nactive_file {MIB}\n"
    small = written(tmp_path / "small", memory_max=str(64 * MIB), memory_current=str(60 * MIB), memory_stat=stat)
    open_ended = written(tmp_path / "open", memory_max="max\n", memory_current="1", memory_stat=stat)
    assert available_bytes(machine, small) == 6 * MIB
    assert available_bytes(machine, open_ended) == available_bytes(machine, tmp_path / "none") == 4 << 30
    assert available_bytes(tmp_path / "none", tmp_path / "none") is None
