"""Extracts a sub-network of a searched student as a model of its own: leading slices of the weights that a training
with `supernet` left in the bundle, tensor by tensor and without torch."""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.discard import discard
from app.core.errors import FieldError, Invalid, WrongState
from app.core.ids import new_id
from app.core.services import Services
from app.core.store import Store, StoredObject
from app.models import repository
from app.models.schemas import ExtractRequest
from app.models.service import WRITTEN, get_model, media_type
from app.models.tables import ModelRow
from app.models.uploads import once
from app.recipe.students.hugging_face import CARD, CONFIG, WEIGHTS, is_model_file, is_weights
from app.recipe.students.model import ModelConfig
from app.recipe.students.searched import SEARCH, SearchedSpace, SearchFile, SearchRow
from app.recipe.students.sentence_folder import POOLING, pooling_of
from app.recipe.students.shrink import ENCODERS, LAYER, resized_model
from app.recipe.students.sub_spaces import kept_of

MAX_HEADER = 64 << 20
"""Most bytes of the header of a file of weights, and of other documents."""
PART = 8 << 20
"""Bytes of a tensor that are held in memory at a time, or one of its rows."""
LICENCE = re.compile(r"^license: *([^\n]+)$", re.MULTILINE)


class TensorSlice(NamedTuple):
    """The leading part of a stored tensor."""

    name: str
    """Its name in the sub-network."""
    dtype: str
    shape: list[int]
    wanted: list[int]
    """Shape of the part."""
    begin: int
    """First byte of the tensor in its file."""
    size: int
    """Bytes of an entry."""


async def extract(services: Services, project_id: str, model_id: str, wanted: ExtractRequest) -> ModelRow:
    """The sub-network as a model; one that was extracted before is returned again. Raises `WrongState` for a model
    without a search and for a row that has another name by now, `Invalid` for a row that the search does not have."""
    async with services.database.read() as session:
        source = await get_model(session, project_id, model_id)
        found = await _extracted(session, source, wanted)
    search = await _search_of(services.store, source)
    if wanted.row >= len(search.rows):
        message, accepted = f"there are {len(search.rows)} sub-networks", f"0 to {len(search.rows) - 1}"
        raise Invalid.fields([FieldError(param="row", message=message, accepted=accepted)])
    if found is not None:
        return found
    row = search.rows[wanted.row]
    space = search.spaces[row.space]
    config = resized_model(space.config, row.sizes)
    written = await _write(services.store, source, space, row, config)
    async with services.database.write() as session:
        await get_model(session, project_id, model_id, lock=True)
        if (found := await _extracted(session, source, wanted)) is not None:
            discard(session, [stored.key for stored in written.values()])
            return found
        return await _insert(session, source, wanted, row, config, written)


async def _extracted(session: AsyncSession, source: ModelRow, wanted: ExtractRequest) -> ModelRow | None:
    """The model that was extracted from this row before. Raises `WrongState` if another name is wanted."""
    for model in await repository.extracted(session, source.project_id, source.id):
        if (model.report or {}).get("extracted", {}).get("row") != wanted.row:
            continue
        if wanted.name not in (None, model.name):
            message = f"row {wanted.row} was extracted as {model.id}, whose name is {model.name}"
            raise WrongState("already_extracted", message)
        return model
    return None


async def _search_of(store: Store, source: ModelRow) -> SearchFile:
    if SEARCH not in _files(source):
        message = f"the model has no {SEARCH}: it was not trained with recipe.method: supernet"
        raise WrongState("not_searched", message)
    return SearchFile.model_validate_json(await _read(store, source, SEARCH))


def _files(source: ModelRow) -> dict[str, dict[str, Any]]:
    return {file["name"]: file for file in source.files}


async def _read(store: Store, source: ModelRow, name: str, begin: int = 0, end: int = MAX_HEADER) -> bytes:
    """Bytes of a file of the bundle."""
    file = _files(source)[name]
    chunks = [chunk async for chunk in store.stream(file["key"], begin, min(end, file["size"]))]
    return b"".join(chunks)


async def _write(
    store: Store, source: ModelRow, space: SearchedSpace, row: SearchRow, config: ModelConfig
) -> dict[str, StoredObject]:
    """Write the files of the model into a folder of its own, by name."""
    folder = f"{WRITTEN}{secrets.token_hex(16)}"
    copied = [name for name in _files(source) if is_model_file(name) and not is_weights(name)]
    documents = {name: await _read(store, source, name) for name in copied}
    documents |= _changed(documents, row, config)
    written = {
        name: await store.write(f"{folder}/{name}", once(content), len(content)) for name, content in documents.items()
    }
    slices = await slices_of(store, source, space, row)
    header = _header(slices)
    size = len(header) + sum(math.prod(each.wanted) * each.size for each in slices)
    key = _files(source)[space.weights]["key"]
    written[WEIGHTS] = await store.write(f"{folder}/{WEIGHTS}", _content(store, key, header, slices), size)
    return written


def _changed(documents: Mapping[str, bytes], row: SearchRow, config: ModelConfig) -> dict[str, bytes]:
    """Documents that depend on the sizes, by name."""
    library = json.loads(documents[CONFIG])
    sizes = (row.layers, row.width, row.heads, row.hidden)
    library |= dict(zip(ENCODERS[library["model_type"]][:4], sizes, strict=True))
    licence = LICENCE.search(documents.get(CARD, b"").decode(errors="replace"))
    title = f"---\n{licence[0]}\n---\n" if licence else ""
    card = f"{title}\n# Sub-network {row.row}\n\nOf {row.parameters:,} weights, extracted from the shared weights.\n"
    found = {
        CONFIG: _document(library),
        config.file_name: config.model_dump_json(indent=2).encode(),
        CARD: card.encode(),
    }
    if config.pooling is not None:
        found[POOLING] = _document(pooling_of(config.pooling, config.outputs))
    return found


def _document(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


async def slices_of(store: Store, source: ModelRow, space: SearchedSpace, row: SearchRow) -> list[TensorSlice]:
    """The tensors of a sub-network, in the order of their names."""
    length = int.from_bytes(await _read(store, source, space.weights, 0, 8), "little")
    header = json.loads(await _read(store, source, space.weights, 8, 8 + min(length, MAX_HEADER)))
    sizes = {"width": row.width, "hidden": row.hidden}
    layers = ENCODERS[space.config.architecture.model_type].sizes(space.config.architecture.config)[0]  # type: ignore[union-attr]
    places = {number: place for place, number in enumerate(kept_of(row.layers, layers))}
    found = []
    for name, axes in space.axes.items():
        layer = LAYER.match(name)
        if layer and int(layer[2]) not in places:
            continue
        renamed = f"{layer[1]}{places[int(layer[2])]}{layer[3]}" if layer else name
        stored = header[name]
        shape, (begin, end) = stored["shape"], stored["data_offsets"]
        wanted = [sizes[axis] if axis else whole for axis, whole in zip(axes, shape, strict=True)]
        item = (end - begin) // max(math.prod(shape), 1)
        found.append(TensorSlice(renamed, stored["dtype"], shape, wanted, 8 + length + begin, item))
    return sorted(found)


def leading(data: memoryview, shape: Sequence[int], wanted: Sequence[int], size: int) -> bytes:
    """The leading part of this shape, of a tensor of entries of `size` bytes."""
    if list(shape[1:]) == list(wanted[1:]):
        return bytes(data[: math.prod(wanted) * size])
    stride = math.prod(shape[1:]) * size
    rows = (data[row * stride : (row + 1) * stride] for row in range(wanted[0]))
    return b"".join(leading(each, shape[1:], wanted[1:], size) for each in rows)


def _header(slices: Sequence[TensorSlice]) -> bytes:
    """The header of a file of these tensors, one after the other."""
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for each in slices:
        end = offset + math.prod(each.wanted) * each.size
        document[each.name] = {"dtype": each.dtype, "shape": each.wanted, "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(document, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


async def _content(store: Store, key: str, header: bytes, slices: Sequence[TensorSlice]) -> AsyncIterator[bytes]:
    yield header
    for each in slices:
        shape, wanted = each.shape or [1], each.wanted or [1]
        row = math.prod(shape[1:]) * each.size
        step = max(1, PART // max(row, 1))
        for first in range(0, wanted[0], step):
            rows = min(step, wanted[0] - first)
            begin = each.begin + first * row
            data = b"".join([chunk async for chunk in store.stream(key, begin, begin + rows * row)])
            part = [rows, *shape[1:]], [rows, *wanted[1:]]
            yield await asyncio.to_thread(leading, memoryview(data), *part, each.size)


async def _insert(
    session: AsyncSession,
    source: ModelRow,
    wanted: ExtractRequest,
    row: SearchRow,
    config: ModelConfig,
    written: Mapping[str, StoredObject],
) -> ModelRow:
    files = [{"name": name, "media_type": media_type(name), **asdict(stored)} for name, stored in written.items()]
    model = ModelRow(
        id=new_id("model"),
        project_id=source.project_id,
        name=wanted.name or (f"{source.name} row {row.row}"[:128] if source.name else None),
        teacher_id=source.id,
        config=config.model_dump(mode="json"),
        parameters=row.parameters,
        report={"extracted": {"model": source.id, **row.model_dump(mode="json")}},
        files=sorted(files, key=lambda file: str(file["name"])),
        created_at=now(),
    )
    session.add(model)
    await session.flush()
    await session.refresh(model)
    return model
