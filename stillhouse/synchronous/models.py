# Generated from stillhouse/asynchronous/models.py by scripts/sync_client.py; change that and run it again.
"""The client's part for models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from stillhouse.errors import TransferError
from stillhouse.local_files import Progress, no_progress
from stillhouse.objects import Modules, StoredModel
from stillhouse.requests import Document, given, resource
from stillhouse.synchronous import transfer
from stillhouse.synchronous.base import Api


class ModelsApi(Api):
    """Models. Every method raises `ServiceError` (404 for an unknown id) and `Unreachable`, and what it names."""

    def models(self, *, limit: int | None = None) -> Iterator[StoredModel]:
        """List models, newest first, without their reports; pages are requested as they are needed.

        Args:
            limit: Maximum number; None: all.

        Returns:
            An iterator, which raises `ServiceError` and `Unreachable`.
        """
        return self._pages(StoredModel, "/v1/models", {}, limit)

    def model(self, model_id: str) -> StoredModel:
        """A model, with its configuration, report and files."""
        return self._one(StoredModel, "GET", resource("models", model_id))

    def modules(self, model_id: str) -> Modules:
        """Paths of the modules of a model's network, as used by losses on features."""
        return self._one(Modules, "GET", resource("models", model_id, "modules"))

    def register_model(
        self,
        file_id: str,
        config: Document,
        name: str | None = None,
        *,
        checkpoint_key: str | None = None,
        key_map: Document | str | None = None,
    ) -> StoredModel:
        """Register a file of weights as a model.

        Args:
            file_id: The uploaded file: safetensors, or a file written by `torch.save`.
            config: Description of the weights: architecture, input, preprocessing and classes.
            name: Name of the model; names may repeat.
            checkpoint_key: Key of the weights in a file written by `torch.save`, such as `state_dict`.
            key_map: Renames of the weights (`strip`, `drop`, `rename`), or the name of a built-in map.

        Returns:
            The model.

        Raises:
            ServiceError: The weights do not fit the description (422).
        """
        body = {"file": file_id, "config": config, "name": name, "checkpoint_key": checkpoint_key, "key_map": key_map}
        return self._one(StoredModel, "POST", "/v1/models", json=given(body))

    def register_folder(
        self, files: Mapping[str, str], config: Document | None = None, name: str | None = None
    ) -> StoredModel:
        """Register a folder in the Hugging Face layout as a model.

        Args:
            files: Ids of uploaded files by their name in the folder.
            config: Description of the weights; None: the folder's own.
            name: Name of the model; names may repeat.

        Returns:
            The model.

        Raises:
            ServiceError: A file is missing or not allowed in such a folder (422).
        """
        body = given({"files": dict(files), "config": config, "name": name})
        return self._one(StoredModel, "POST", "/v1/models", json=body)

    def extract(self, model_id: str, row: int, name: str | None = None) -> StoredModel:
        """Extract a sub-network of a student that was searched with the method `supernet`.

        Args:
            model_id: The searched student.
            row: Number of the sub-network in its `search.json`.
            name: Name of the new model; None: that of the student with the row.

        Returns:
            The model; the same one if the row was extracted before.

        Raises:
            ServiceError: The model was not searched (409), or has no such row (422).
        """
        body = given({"row": row, "name": name})
        return self._one(StoredModel, "POST", resource("models", model_id, "extract"), json=body, repeatable=True)

    def delete_model(self, model_id: str) -> None:
        """Delete a model.

        Raises:
            ServiceError: A job that is not final uses it (409).
        """
        self._transport.send("DELETE", resource("models", model_id))

    def download_model(self, model_id: str, name: str, folder: Path, *, progress: Progress = no_progress) -> Path:
        """Download a file of a model's bundle and verify its sha256; an interrupted download is continued.

        Args:
            model_id: The model.
            name: Name of the file; a folder in it is created.
            folder: Folder to write to; it is created if it does not exist.
            progress: Called with the bytes received so far and the size of the file.

        Returns:
            Path of the file.

        Raises:
            TransferError: There is no such file, the download was interrupted, or the digest is wrong.
            BadRequest: The name would leave the folder.
        """
        item = next((item for item in (self.patient().model(model_id)).files if item.name == name), None)
        if item is None:
            raise TransferError(f"model {model_id} has no file {name!r}")
        url = resource("models", model_id, "files", item.name)
        return transfer.download(self._transport, url, item, folder, progress=progress)
