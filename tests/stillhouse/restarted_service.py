"""`python restarted_service.py DATA_DIR PORT`: the API on a port that its parent keeps, ready once it prints a line."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn

from app.core.settings import Settings
from app.main import create_app


def main(data_dir: str, port: str) -> None:
    settings = Settings(data_dir=Path(data_dir), lease_seconds=600.0)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen()
    print("listening", flush=True)
    uvicorn.Server(uvicorn.Config(create_app(settings), log_level="critical")).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
