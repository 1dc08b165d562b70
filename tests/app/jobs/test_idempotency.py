"""A server that is killed while it makes a job leaves nothing of the idempotency key behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psycopg
import pytest

from app.core.clock import now
from app.core.database import Database
from app.core.errors import WrongState
from app.jobs import service
from app.jobs.service import Idempotency
from app.jobs.tables import IdempotencyKey
from app.projects import keys
from tests.app.jobs.builders import PROJECT, add_inputs, job_spec
from tests.servers import PostgreSQL
from tests.servers.output import first_line
from tests.stillhouse.process import STILLHOUSE, environment

KEY = keys.new_key()
DOCUMENT = {
    "data": {"train": f"file_{PROJECT}"},
    "student": {"architecture": "mlp"},
    "recipe": {"losses": [{"kind": "cross-entropy"}]},
}
HEADERS = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "mine"}
BLOCKED = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


def start(url: str, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """`stillhouse serve`, and its address."""
    env = environment(folder) | {"STILLHOUSE_DATABASE_URL": url, "STILLHOUSE_BOOTSTRAP_KEY": KEY}
    process = subprocess.Popen(
        (*STILLHOUSE, "serve", "--port", "0", "--json"), stdout=subprocess.PIPE, text=True, env=env
    )
    return process, json.loads(first_line(process.stdout))["url"]


async def test_a_request_is_repeated_after_its_server_was_killed(
    postgres_server: PostgreSQL, postgres_template: str, tmp_path: Path
) -> None:
    with postgres_server.database(postgres_template) as url:
        first, address = start(url, tmp_path)
        database = Database(url)
        async with database.write() as session:
            await add_inputs(session, PROJECT)
        plain = url.replace("postgresql+psycopg", "postgresql")
        async with (
            await psycopg.AsyncConnection.connect(plain, autocommit=True) as other,
            httpx.AsyncClient() as client,
        ):
            await client.get(f"{address}/readyz")
            await other.execute("update files set project_id = (select project_id from api_keys)")
            async with other.transaction():
                # The request has taken its key and waits for the file when its server is killed.
                await other.execute("select * from files for update")
                with psycopg.connect(plain, autocommit=True) as watching:
                    posting = start_post(address)
                    while watching.execute(BLOCKED).fetchone() == (0,):
                        pass
                    first.send_signal(signal.SIGKILL)
                    first.wait()
                    posting.wait()
            second, address = start(url, tmp_path)
            try:
                made = [
                    await client.post(f"{address}/v1/jobs", json=DOCUMENT, headers=HEADERS, timeout=600)
                    for _ in range(2)
                ]
                assert [answer.status_code for answer in made] == [201, 201]
                assert made[0].json()["id"] == made[1].json()["id"]
                jobs = await client.get(f"{address}/v1/jobs", headers=HEADERS, timeout=600)
                assert len(jobs.json()["data"]) == 1
            finally:
                second.terminate()
                second.wait()
        await database.close()


def start_post(address: str) -> subprocess.Popen[bytes]:
    code = (
        "import httpx, json, sys; url, document, headers = sys.argv[1:];"
        "httpx.post(url, json=json.loads(document), headers=json.loads(headers), timeout=600)"
    )
    command = [sys.executable, "-c", code, f"{address}/v1/jobs", json.dumps(DOCUMENT), json.dumps(HEADERS)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("held", [30.0, -1.0], ids=["runs", "was-killed"])
async def test_a_key_that_the_version_before_holds_is_respected_for_its_time(
    postgres_server: PostgreSQL, postgres_template: str, held: float
) -> None:
    """That version wrote the key first, in a transaction of its own."""
    with postgres_server.database(postgres_template) as url:
        database = Database(url)
        async with database.write() as session:
            await add_inputs(session, PROJECT)
            row = {"project_id": PROJECT, "key": "mine", "fingerprint": "one", "locked_until": now() + held}
            session.add(IdempotencyKey(**row, expires_at=now() + 1000.0))
        request = service.create(database, PROJECT, job_spec(), Idempotency("mine", "one", 100.0))
        if held > 0:
            with pytest.raises(WrongState) as caught:
                await request
            assert 0 < int(caught.value.headers["Retry-After"]) <= 30
        else:
            assert (await request).status == "queued"
        await database.close()
