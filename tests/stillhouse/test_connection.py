"""Which service a client speaks to, and with which key."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.core.settings import Settings
from stillhouse import Unreachable, connection
from stillhouse.connection import Connection

OWN = Connection(url="http://127.0.0.1:8420", key="still_own")


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is set."""
    for name in ("STILLHOUSE_URL", "STILLHOUSE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STILLHOUSE_DATA_DIR", str(tmp_path))
    return tmp_path


def test_nothing_known_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="no Stillhouse"):
        connection.find()


def test_what_up_left_is_used_and_private(data_dir: Path) -> None:
    connection.write(data_dir, OWN)
    assert connection.find() == OWN
    assert (data_dir / "client.json").stat().st_mode & 0o777 == 0o600


def test_a_leftover_with_open_permissions_is_replaced(data_dir: Path) -> None:
    (data_dir / "client.new").write_text("")
    (data_dir / "client.new").chmod(0o644)
    connection.write(data_dir, OWN)
    assert (data_dir / "client.json").stat().st_mode & 0o777 == 0o600


def test_arguments_win_over_the_environment_and_that_over_the_file(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.write(data_dir, OWN)
    monkeypatch.setenv("STILLHOUSE_API_KEY", "still_environment")
    assert connection.find() == Connection(url=OWN.url, key="still_environment")
    monkeypatch.setenv("STILLHOUSE_URL", "http://there/")
    assert connection.find() == Connection(url="http://there", key="still_environment")
    assert connection.find("http://here", "still_given") == Connection(url="http://here", key="still_given")


def test_the_kept_key_is_not_sent_elsewhere(data_dir: Path) -> None:
    connection.write(data_dir, OWN)
    with pytest.raises(Unreachable, match="no key for http://elsewhere"):
        connection.find("http://elsewhere")


def test_a_damaged_file_counts_as_none(data_dir: Path) -> None:
    (data_dir / "client.json").write_text('{"url": 3')
    with pytest.raises(Unreachable):
        connection.find()


def test_the_data_folder_is_the_services(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.data_dir() == Settings().data_dir == data_dir
    monkeypatch.setenv("STILLHOUSE_DATA_DIR", "")
    assert connection.data_dir() == Settings().data_dir
    monkeypatch.delenv("STILLHOUSE_DATA_DIR")
    assert connection.data_dir() == Settings().data_dir


def test_the_data_folder_is_made_where_only_the_connection_lies_in_it(data_dir: Path) -> None:
    connection.write(data_dir / "new", OWN)
    assert connection.read(data_dir / "new") == OWN
    assert (data_dir / "new").stat().st_mode & 0o777 == 0o700
