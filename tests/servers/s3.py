"""S3 servers: none that runs without Docker is complete, so there are two.

moto (in memory) behaves like S3: ranges, multi-part, conditional puts, checksums. It accepts any signature.
rclone verifies SigV4 and the expiry of presigned links. It answers ranges with the whole object.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.servers.process import Server

BUCKET = "stillhouse"
REGION = "us-east-1"
ACCESS_KEY = "AKIDSTILLHOUSETESTS"
SECRET_KEY = "secret-of-the-store-in-tests"  # not a credential: the server lives as long as the test


class S3(Server):
    """An S3 endpoint with one bucket."""

    bucket = BUCKET
    region = REGION
    access_key = ACCESS_KEY
    secret_key = SECRET_KEY

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        try:
            httpx.get(self.endpoint)
        except httpx.TransportError:
            return False
        self.make_bucket()
        return True

    @abstractmethod
    def make_bucket(self) -> None:
        """Create the bucket unless it exists."""

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for `obstore.store.S3Store`."""
        return {
            "bucket": self.bucket,
            "endpoint": self.endpoint,
            "region": self.region,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "client_options": {"allow_http": True},
        }

    def settings(self, prefix: str = "") -> dict[str, str]:
        """The service's environment for this store."""
        return {
            "STILLHOUSE_STORE_URL": f"s3://{self.bucket}/{prefix}".rstrip("/"),
            "STILLHOUSE_STORE_ENDPOINT": self.endpoint,
            "STILLHOUSE_STORE_REGION": self.region,
            "STILLHOUSE_STORE_ACCESS_KEY": self.access_key,
            "STILLHOUSE_STORE_SECRET_KEY": self.secret_key,
        }


class Moto(S3):
    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def make_bucket(self) -> None:
        httpx.put(f"{self.endpoint}/{self.bucket}").raise_for_status()


class Rclone(S3):
    def command(self) -> list[str]:
        program = str(Path(sys.executable).with_name("rclone"))
        key = f"{self.access_key},{self.secret_key}"
        return [program, "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", key, str(self._root)]

    def environment(self) -> dict[str, str]:
        own = {"RCLONE_CONFIG": str(self.folder / "rclone.conf"), "RCLONE_CACHE_DIR": str(self.folder / "cache")}
        return super().environment() | own

    def make_bucket(self) -> None:
        (self._root / self.bucket).mkdir(exist_ok=True)

    @property
    def _root(self) -> Path:
        root = self.folder / "buckets"
        root.mkdir(exist_ok=True)
        return root


@contextmanager
def moto_s3() -> Iterator[S3]:
    """A running moto with the empty bucket `stillhouse`."""
    with Moto.running() as server:
        yield server


@contextmanager
def rclone_s3() -> Iterator[S3]:
    """A running rclone with the empty bucket `stillhouse`."""
    with Rclone.running() as server:
        yield server
