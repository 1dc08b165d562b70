"""What the API tells the workers, and how it learns that it can't."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import redis
from pydantic import SecretStr

from app.core.dispatch import BrokerUnavailable, CeleryDispatcher, PollOnly, make_dispatcher
from app.core.settings import Settings
from tests.servers.ports import silent_port


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    """A database of this test alone."""
    with redis.Redis.from_url(f"{redis_url.rpartition('/')[0]}/63") as client:
        client.flushdb()
        yield client


def settings(url: str = "") -> Settings:
    return Settings(_env_file=None, broker_url=SecretStr(url))


def url_of(broker: redis.Redis) -> str:
    at = broker.connection_pool.connection_kwargs
    return f"redis://{at['host']}:{at['port']}/{at['db']}"


async def test_a_job_becomes_one_message_in_its_queue(broker: redis.Redis) -> None:
    dispatcher = make_dispatcher(settings(url_of(broker)))
    assert isinstance(dispatcher, CeleryDispatcher)
    await dispatcher.check()
    await dispatcher.dispatch("job_1", "gpu")
    await dispatcher.close()
    (message,) = broker.lrange("gpu", 0, -1)
    assert broker.llen("any") == 0
    envelope = json.loads(message)
    assert envelope["content-type"] == "application/json"
    assert envelope["headers"]["task"] == "stillhouse.run_job"
    assert envelope["headers"]["argsrepr"] == "('job_1',)"
    assert envelope["headers"]["eta"] is None


async def test_a_broker_that_is_away_is_said_to_be() -> None:
    with silent_port() as port:
        dispatcher = CeleryDispatcher(settings(f"redis://127.0.0.1:{port}/0"))
        with pytest.raises(BrokerUnavailable):
            await dispatcher.dispatch("job_1", "any")
        with pytest.raises(BrokerUnavailable):
            await dispatcher.check()
        await dispatcher.close()


async def test_without_a_broker_nothing_is_sent() -> None:
    dispatcher = make_dispatcher(settings())
    assert isinstance(dispatcher, PollOnly)
    await dispatcher.dispatch("job_1", "any")
    await dispatcher.check()
    await dispatcher.close()


def test_the_embedded_service_does_not_load_celery() -> None:
    code = (
        "import sys\n"
        "from app.core.dispatch import make_dispatcher\n"
        "from app.core.settings import Settings\n"
        "make_dispatcher(Settings())\n"
        "sys.exit('celery' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
