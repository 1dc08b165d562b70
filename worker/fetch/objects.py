"""Models in an object store outside the service's own prefix, read with the store's credentials."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from app.core.settings import Settings
from app.core.store import Damaged, MissingObject, Store
from app.recipe.students.sentence_folder import POOLING
from worker.fetch.refusal import Refused, choose


async def fetch(uri: str, settings: Settings, target: Path) -> None:
    """Write the files at `uri` into the folder `target`. Raises: `Refused`, `Unavailable`, `OSError`."""
    _require_folder(uri)
    store = Store.from_settings(settings.model_copy(update={"store_url": uri}))
    below = str(PurePosixPath(POOLING).parent)
    sizes = await store.sizes() | {f"{below}/{name}": size for name, size in (await store.sizes(below)).items()}
    try:
        for name in choose(sizes, settings.max_teacher_bytes):
            await store.fetch(name, target / name, sizes[name])
    except (MissingObject, Damaged) as error:
        raise Refused("it changed while it was fetched") from error


def _require_folder(uri: str) -> None:
    """Require an existing folder: on local disk, opening a store would create it."""
    if uri.startswith("file:") and not Path(uri.removeprefix("file://")).is_dir():
        raise Refused(f"there is nothing at {uri}")
