"""Reference applications for comparison: the minimum with the same libraries."""

from __future__ import annotations

import os

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles


def bare() -> FastAPI:
    """One route without input, authentication or database."""
    app = FastAPI()

    @app.get("/")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


def static() -> Starlette:
    """Serves the folder BENCH_CONTENT."""
    return Starlette(routes=[Mount("/", StaticFiles(directory=os.environ["BENCH_CONTENT"]))])
