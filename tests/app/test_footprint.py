"""What the API's process costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys
import psutil
from app.core import migrate
from app.core.settings import Settings
from app.main import create_app

async def start():
    settings = Settings()
    migrate.upgrade(settings.resolved_database_url)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        app.openapi()
        print(psutil.Process().memory_info().rss >> 20)
        print(*sorted(name for name in ("torch", "onnxruntime", "celery", "boto3") if name in sys.modules))

asyncio.run(start())
"""


def test_the_api_starts_without_torch_in_less_than_150_mb(tmp_path: Path) -> None:
    environment = {**os.environ, "STILLHOUSE_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    megabytes, modules = done.stdout.split("\n")[:2]
    assert int(megabytes) < 150
    assert modules == ""
