"""Models and migrations agree, up and down, on both databases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Table, event, inspect, select, text
from sqlalchemy.exc import OperationalError

import app.main  # noqa: F401  # fills the metadata
from app.core import migrate
from app.core.database import Base
from app.core.migrate import configuration, connected, downgrade, upgrade
from app.jobs.tables import JobRow
from app.projects.tables import Project
from tests.servers.output import all_of


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of an empty database, as the settings would have it."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'folder' / 'a b%.db'}"
    else:
        yield request.getfixturevalue("postgres_url")


def tables(url: str) -> set[str]:
    with connected(url) as connection:
        return set(inspect(connection).get_table_names()) - {"alembic_version"}


def test_upgrading_gives_what_the_models_say(url: str) -> None:
    upgrade(url)
    assert tables(url) == set(Base.metadata.tables)
    with connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_every_step_goes_down_and_up_again(url: str) -> None:
    with connected(url) as connection:
        steps = [script.revision for script in ScriptDirectory.from_config(configuration(connection)).walk_revisions()]
    upgrade(url)
    for revision in [*steps[1:], "base"]:
        downgrade(url, revision)
    assert tables(url) == set()
    for revision in reversed(steps):
        upgrade(url, revision)
    assert tables(url) == set(Base.metadata.tables)


def test_upgrading_again_changes_nothing_and_keeps_the_rows(url: str) -> None:
    upgrade(url)
    with connected(url) as connection, connection.begin():
        connection.execute(text("INSERT INTO projects (id, name, created_at) VALUES ('proj_1', 'one', 0)"))
    upgrade(url)
    with connected(url) as connection:
        assert connection.scalar(text("SELECT name FROM projects")) == "one"


def test_processes_that_migrate_together_take_turns(url: str) -> None:
    program = f"from app.core.migrate import upgrade; upgrade({url!r})"
    running = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    assert [all_of(process) for process in running] == [(None, b"")] * 3
    assert tables(url) == set(Base.metadata.tables)


def test_a_step_that_fails_leaves_nothing_half_done(url: str) -> None:
    upgrade(url)
    dropped = []

    def fail_at_the_third(*arguments: object) -> None:
        if "DROP TABLE" in str(arguments[2]).upper() and "_alembic_tmp" not in str(arguments[2]):
            dropped.append(arguments[2])
            if len(dropped) == 3:
                raise ZeroDivisionError

    with connected(url) as connection:
        event.listen(connection, "before_cursor_execute", fail_at_the_third)
        with pytest.raises(ZeroDivisionError):
            command.downgrade(configuration(connection), "base")
    assert len(dropped) == 3
    assert tables(url) == set(Base.metadata.tables)


def test_the_time_outs_hold_up_and_down(postgres_url: str) -> None:
    for direction, revision in ((command.upgrade, "head"), (command.downgrade, "base")):
        seen: dict[str, str] = {}
        with connected(postgres_url) as connection:

            def look(cursor_connection: object, cursor: psycopg.Cursor[tuple[str]], *_: object) -> None:
                for name in ("lock_timeout", "statement_timeout"):
                    row = cursor.execute(f"SHOW {name}").fetchone()
                    assert row is not None
                    seen[name] = row[0]  # noqa: B023  # called within this round

            event.listen(connection, "before_cursor_execute", _only_changes(look))
            direction(configuration(connection), revision)
        assert seen == {"lock_timeout": "5s", "statement_timeout": "5min"}


def _only_changes(look: object) -> object:
    """Call `look` before the statements that change the schema."""

    def listener(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.lstrip().upper().startswith(("CREATE TABLE JOBS", "DROP TABLE JOBS")):
            look(connection, cursor)  # type: ignore[operator]

    return listener


def test_a_table_that_is_in_use_is_not_waited_for_long(postgres_url: str) -> None:
    upgrade(postgres_url)
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as other, connected(postgres_url) as connection:
        other.execute("LOCK TABLE projects IN ACCESS SHARE MODE")
        impatient = configuration(connection)
        impatient.attributes["lock_timeout"] = "50ms"
        with pytest.raises(OperationalError, match="lock timeout"):
            command.downgrade(impatient, "base")
    assert tables(postgres_url) == set(Base.metadata.tables)


def test_the_migrations_are_found_from_anywhere(tmp_path: Path) -> None:
    program = f"from app.core.migrate import upgrade; upgrade('sqlite+aiosqlite:///{tmp_path / 'x.db'}')"
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)
    assert tables(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") == set(Base.metadata.tables)


def test_without_migrations_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(migrate, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="not installed"):
        upgrade(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")


METHODS = {
    "a": ({"kind": "on-policy", "share": 0.5}, {"generation": {"kind": "on-policy", "share": 0.5}}),
    "b": ({"kind": "supervised"}, {}),
    "c": (None, {}),
}
"""By a job's id: `recipe.method` of today (None: it says nothing), and what the recipe of the earlier contract says."""


def test_stored_jobs_say_how_they_are_trained_in_the_words_of_each_contract(url: str) -> None:
    upgrade(url)
    specs = {job: {"recipe": {"epochs": 1} | ({"method": now} if now else {})} for job, (now, _) in METHODS.items()}
    with connected(url) as connection, connection.begin():
        connection.execute(Project.__table__.insert().values(id="p", name="p", created_at=0.0))
        for job, spec in specs.items():
            connection.execute(JobRow.__table__.insert().values({**filled(JobRow.__table__), "id": job, "spec": spec}))
    downgrade(url, "0004")
    assert stored(url) == {job: {"recipe": {"epochs": 1, **earlier}} for job, (_, earlier) in METHODS.items()}
    upgrade(url)
    assert stored(url) == specs | {"b": {"recipe": {"epochs": 1}}}


def filled(table: Table) -> dict[str, object]:
    """Some value for every column of a row that must have one; the project is `p`."""
    values: dict[type, object] = {str: "p", int: 0, float: 0.0, dict: {}, bool: False, object: 0.0}
    needed = [column for column in table.columns if not column.nullable and column.server_default is None]
    return {column.name: values[column.type.python_type] for column in needed}


def stored(url: str) -> dict[str, object]:
    with connected(url) as connection:
        return {row.id: row.spec for row in connection.execute(select(JobRow.id, JobRow.spec))}
