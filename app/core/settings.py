"""All settings, read from the environment (`STILLHOUSE_…`). Without any, the service runs embedded on this machine."""

from __future__ import annotations

import os
import secrets
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.core import private
from app.core.logs import LogFormat, LogLevel
from app.recipe.base import Positive
from app.recipe.job import Queue
from app.recipe.teachers.cache import DEFAULT_BYTES
from app.recipe.teachers.teacher import Outside

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
PORT = r"([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
ADDRESS = f".+:{PORT}"
"""Pattern of the rendezvous address of a worker."""


class Settings(BaseSettings):
    """Validated settings; times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="STILLHOUSE_", env_ignore_empty=True, extra="ignore", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: int = Field(8420, ge=0, le=65_535)
    """Port that the API listens on; 0 takes a free one."""
    data_dir: Path = Path.home() / ".stillhouse"
    """Folder of the embedded database and store, the generated secret and the scratch folders."""
    log_format: LogFormat = "text"
    """Format of the log on stderr: lines for people, or `json`, one object per line."""
    log_level: LogLevel = "info"
    """Lowest level of the service's own log records; libraries log from warnings on."""
    cache_dir: Path | None = None
    """Folder, on a local disk, of a worker's caches: compiled kernels, fetched teachers and teacher outputs. None:
    `cache` in `data_dir`."""
    teacher_cache_bytes: int = Field(DEFAULT_BYTES, ge=0)
    """Disk space for the cached teacher outputs of the workers of one machine; 0: no cache."""
    database_url: str = ""
    """SQLAlchemy URL (`postgresql+psycopg://…`); empty: SQLite in `data_dir`."""
    database_pool_size: int = Field(10, ge=1)
    """Database connections of one process for requests; event streams use two more."""
    database_lock_seconds: Positive = 5.0
    """Longest time that a statement waits for another transaction's lock (PostgreSQL)."""
    database_statement_seconds: Positive = 30.0
    """Longest time that a statement takes (PostgreSQL), or a transaction waits for its turn (SQLite)."""
    database_idle_seconds: Positive = 10.0
    """Longest time that a transaction is idle before PostgreSQL ends it: a frozen process must not keep locks."""

    store_url: str = ""
    """Object store (`s3://bucket/prefix`, `gs://…`, `az://…`, `file:///…`); empty: a folder in `data_dir`."""
    store_endpoint: str | None = None
    """Address of an S3-compatible store other than Amazon's."""
    store_public_endpoint: str | None = None
    """The same store as clients reach it, for presigned links; none: downloads pass through the API."""
    store_region: str = "us-east-1"
    store_access_key: SecretStr | None = None
    store_secret_key: SecretStr | None = None

    hub_enabled: bool = True
    """Whether workers fetch teachers from a Hugging Face hub; without it, jobs may still name those of the mirror."""
    hub_endpoint: str = "https://huggingface.co"
    """Address of the hub; only workers use it."""
    hub_token: SecretStr | None = None
    """Token of the workers for the hub; every project may then use the models that it gives access to."""
    hub_mirror: Path | None = None
    """Folder with models of the hub as `owner/name/revision/`; these are not fetched."""
    teacher_prefixes: Annotated[list[str], NoDecode] = []
    """Prefixes in object stores (`s3://bucket/teachers`) from which teachers may be read, separated by commas; workers
    read them with the credentials of the store, for every project."""
    max_teacher_bytes: int = Field(16 << 30, ge=1)
    """Largest total size of a teacher that is fetched from a hub or an object store."""
    model_cache_bytes: int = Field(64 << 30, ge=0)
    """Disk space on each worker for fetched and converted teachers; the least recently used are evicted first."""

    broker_url: SecretStr = SecretStr("")
    """Redis that carries wake-ups to Celery workers; empty: workers poll the database."""
    queues: Annotated[list[Queue], NoDecode] = Field(["any", "cpu"], min_length=1)
    """Queues that a worker of this process serves, separated by commas; unless this is set, a polling worker adds `gpu`
    if there is one."""

    worker_gpus: int = Field(1, ge=1, le=64)
    """GPUs that a worker of the queue `gpu` uses; it does not claim jobs that need more."""
    worker_nodes: int = Field(1, ge=1, le=1024)
    """Machines that a worker has for a job: its own, and those on which `stillhouse node` runs with
    `worker_rendezvous`. It does not claim jobs that need more."""
    worker_rendezvous: Annotated[str, Field(pattern=f"^({ADDRESS})?$")] = ""
    """Host and port on this machine to which the others connect. Only for a private network: there is no
    authentication."""

    secret: SecretStr = SecretStr("")
    """Key of the digests of API keys, at least 32 characters; empty: generated once and kept in `data_dir`."""
    bootstrap_key: SecretStr | None = None
    """An API key with all scopes to create at the first start; none: one is generated and printed."""

    lease_seconds: Positive = 30.0
    """Time after which a worker without a heartbeat loses its job."""
    heartbeat_seconds: Positive = 2.0
    """Time between two heartbeats, and so the longest delay of a request to stop; at most a quarter of the lease,
    so that single misses are harmless."""
    poll_seconds: Positive = 0.2
    """Time between two polls of a polling worker."""
    worker_tick_file: Path | None = None
    """File that a worker touches while it polls for work or holds a lease, for health probes."""
    reaper_seconds: Positive = 5.0
    """Time between two rounds of the reaper."""
    retry_backoff_seconds: Positive = 5.0
    """Pause after the first failure of a job; doubles with every further one, up to ten minutes. There is no pause
    after an interruption, unless there are more than five within a minute."""
    collector_seconds: float = Field(60.0, ge=0)
    """Time between two rounds of the collector, which deletes objects without a row; 0: disabled."""
    collector_grace_seconds: Positive = 300.0
    """Time for which the collector must have seen an object without a row before it deletes it; longer than any request
    takes between writing an object and its row."""
    stop_seconds: Positive = 60.0
    """Longest time for a trainer to save its state and exit when its job is paused or its worker stops."""

    max_connections: int = Field(4096, ge=1)
    """Open connections of one process of the API; further ones get a 503."""
    header_seconds: Positive = 10.0
    """Longest time for the headers of a request."""
    body_seconds: Positive = 20.0
    """Interval at which the transfer rate of a body is checked."""
    min_bytes_per_second: float = Field(1024.0, gt=0)
    """Lowest transfer rate of a body, on average over `body_seconds`."""
    write_seconds: Positive = 30.0
    """Longest time for a client to receive what was sent to it."""
    keep_alive_seconds: Positive = 15.0
    """Time after which a connection without a request is closed."""
    max_uploads_per_key: int = Field(16, ge=1)
    """Bodies that one API key may upload to the store at a time; further ones get a 429."""
    max_streams: int = Field(1000, ge=1)
    """Open event streams of one process of the API."""
    max_streams_per_key: int = Field(500, ge=1)
    """Open event streams of one API key in one process."""
    max_body_bytes: int = Field(1 << 20, ge=1024)
    """Largest body of a request that is not an upload."""
    max_file_bytes: int = Field(16 << 30, ge=1)
    """Largest file that may be uploaded."""
    max_part_bytes: int = Field(64 << 20, ge=1)
    """Largest part of an upload."""
    upload_seconds: Positive = 86_400.0
    """Time after which an incomplete upload is removed."""
    idempotency_seconds: Positive = 86_400.0
    """Time for which an idempotency key is stored."""

    @field_validator("queues", "teacher_prefixes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.heartbeat_seconds * 4 > self.lease_seconds:
            raise ValueError("heartbeat_seconds must be at most a quarter of lease_seconds")
        if self.worker_nodes > 1 and not self.worker_rendezvous:
            raise ValueError("worker_rendezvous must be set if worker_nodes is more than 1")
        secret = self.secret.get_secret_value()
        if secret and len(secret) < 32:
            raise ValueError("secret must have at least 32 characters")
        if self.host not in LOOPBACK and not secret:
            raise ValueError("secret must be set to listen on an address other than loopback")
        return self

    @property
    def outside(self) -> Outside:
        """Sources of teachers other than the service itself."""
        return Outside(self.hub_enabled or self.hub_mirror is not None, tuple(self.teacher_prefixes))

    @property
    def embedded(self) -> bool:
        """True without a broker: workers poll the database."""
        return not self.broker_url.get_secret_value()

    @property
    def resolved_database_url(self) -> str:
        """The database's URL with SQLAlchemy's async driver."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.expanduser().absolute() / 'stillhouse.db'}"

    @property
    def resolved_store_url(self) -> str:
        return self.store_url or (self.data_dir.expanduser().absolute() / "store").as_uri()

    @property
    def scratch_dir(self) -> Path:
        """Parent of the folders in which attempts run."""
        return self.data_dir.expanduser().absolute() / "scratch"

    @property
    def resolved_cache_dir(self) -> Path:
        return (self.cache_dir or self.data_dir / "cache").expanduser().absolute()

    @cached_property
    def secret_bytes(self) -> bytes:
        """The server's secret; generated in `data_dir` at the first use if none is set."""
        return (self.secret.get_secret_value() or _stored_secret(self.data_dir.expanduser() / "secret")).encode()


def _stored_secret(path: Path) -> str:
    private.make_folder(path.parent)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
    except FileExistsError:
        pass
    return path.read_text()
