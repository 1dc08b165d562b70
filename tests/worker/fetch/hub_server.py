"""A model hub with one model: what the hub's library asks, answered from a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = ".safetensors"
"""Files whose digest a hub states."""


class Hub(ThreadingHTTPServer):
    """Serves `folder` as the model `name` at `revision`; remembers what was asked, and by which token."""

    def __init__(self, folder: Path, name: str, revision: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.name, self.revision = folder, name, revision
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.stated: dict[str, str] = {}
        """Digests to state instead of the true ones."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def listing(self) -> dict[str, Any]:
        return {"id": self.name, "sha": self.revision, "siblings": [self._file(path) for path in self._paths()]}

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": file["rfilename"], "oid": "0" * 40, **file} for file in self.listing()["siblings"]
        ]

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def _file(self, path: Path) -> dict[str, Any]:
        size = path.stat().st_size
        sha256 = self.stated.get(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        lfs = (
            {"lfs": {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 100}} if path.suffix == LARGE else {}
        )
        return {"rfilename": path.name, "size": size, "blobId": "0" * 40, **lfs}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.tokens.add(self.headers.get("Authorization"))
        prefix = f"/{hub.name}/resolve/{hub.revision}/"
        if path == f"/api/models/{hub.name}/revision/{hub.revision}":
            self._answer(json.dumps(hub.listing()).encode())
        elif path == f"/api/models/{hub.name}/tree/{hub.revision}":
            self._answer(json.dumps(hub.tree()).encode())
        elif path.startswith(prefix) and (hub.folder / path.removeprefix(prefix)).is_file():
            hub.asked.append(path.removeprefix(prefix))
            self._answer((hub.folder / hub.asked[-1]).read_bytes())
        else:
            self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = hashlib.sha256(body).hexdigest()
        stated = {"X-Repo-Commit": self.server.revision, "ETag": f'"{etag}"', "Content-Length": str(len(body))}
        for name, value in {**stated, "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serving(folder: Path, name: str, revision: str) -> Iterator[Hub]:
    """Run one until the end of the block."""
    with Hub(folder, name, revision) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
