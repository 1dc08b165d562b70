"""`python -m worker.fetch.download`: the process that `worker.fetch.hub` starts; its order is read from stdin."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from worker.fetch.hub import REFUSED, UNREACHED, Order
from worker.fetch.refusal import Refused, choose

BROKEN = "the hub sent {name} with another digest than it states"


def main() -> int:
    """Fetch; returns the exit status."""
    order = Order.model_validate_json(sys.stdin.buffer.read())
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        _fetch(order)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):  # a gated model raises the first
        print(f"the hub has no model {order.name} at {order.revision}, or does not show it to this service")  # noqa: T201
        return REFUSED
    except Refused as error:
        print(error)  # noqa: T201
        return REFUSED
    except (HfHubHTTPError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return UNREACHED
    return 0


def _fetch(order: Order) -> None:
    from huggingface_hub import HfApi, snapshot_download

    access: Any = {"endpoint": order.endpoint, "token": order.token or False}
    listed = HfApi(**access).model_info(order.name, revision=order.revision, files_metadata=True).siblings or []
    known = {file.rfilename: file for file in listed}
    names = choose({name: file.size or 0 for name, file in known.items()}, order.max_bytes)
    folder = Path(order.folder)
    snapshot_download(order.name, revision=order.revision, local_dir=folder, allow_patterns=names, **access)
    for name in names:
        large = known[name].lfs
        if large is not None and _digest(folder / name) != large.sha256:
            raise Refused(BROKEN.format(name=name))
    for rest in (folder / ".cache", folder / ".hub"):
        shutil.rmtree(rest, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
