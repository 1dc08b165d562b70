"""Real servers for tests, each from a wheel: started on a free loopback port, awaited, and stopped for sure.

`postgresql()`, `valkey()`, `moto_s3()` and `rclone_s3()` are context managers. The session's shared ones are the
fixtures in `tests/conftest.py`; a test that stops, restarts or fills up a server starts its own.
"""

from tests.servers.postgresql import PostgreSQL, postgresql
from tests.servers.s3 import S3, moto_s3, rclone_s3
from tests.servers.valkey import Valkey, valkey

__all__ = ["S3", "PostgreSQL", "Valkey", "moto_s3", "postgresql", "rclone_s3", "valkey"]
