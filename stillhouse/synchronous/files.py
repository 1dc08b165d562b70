# Generated from stillhouse/asynchronous/files.py by scripts/sync_client.py; change that and run it again.
"""The client's part for files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stillhouse.local_files import Progress, no_progress, sha256_of
from stillhouse.objects import File
from stillhouse.requests import resource
from stillhouse.synchronous import transfer
from stillhouse.synchronous.base import Api


class FilesApi(Api):
    """Uploaded files."""

    def upload(
        self,
        path: Path,
        *,
        resume: str | None = None,
        reuse: bool = True,
        progress: Progress = no_progress,
    ) -> File:
        """Upload a file in parts, each with its digest, and verify the whole by its sha256.

        The upload continues after an outage of up to `outage_seconds`.

        Args:
            path: The file.
            resume: Id of an interrupted upload of this file (`TransferError.upload_id`); only the missing parts are
                sent.
            reuse: Use a file of the same name and content that the service already has.
            progress: Called with the bytes sent so far and the size of the file.

        Returns:
            The uploaded file.

        Raises:
            TransferError: The upload was interrupted.
            ServiceError: The service rejected the file, for example because it can't be read as data or weights.
            Unreachable: The service does not respond.
            OSError: The file can't be read.
        """
        if reuse and resume is None:
            sha256 = sha256_of(path)
            for file in self.files(sha256=sha256):
                if file.name == path.name and file.sha256 == sha256:
                    return file
        return transfer.upload(self._transport, path, resume=resume, progress=progress)

    def files(self, *, sha256: str | None = None, limit: int | None = None) -> Iterator[File]:
        """List uploaded files, newest first; pages are requested as they are needed.

        Args:
            sha256: Only files with this digest, in hexadecimal.
            limit: Maximum number; None: all.

        Returns:
            An iterator, which raises `ServiceError` and `Unreachable`.
        """
        return self._pages(File, "/v1/files", {"sha256": sha256}, limit)

    def delete_file(self, file_id: str) -> None:
        """Delete a file.

        Raises:
            ServiceError: There is no such file (404), or a job that is not final uses it (409).
            Unreachable: The service does not respond.
        """
        self._transport.send("DELETE", resource("files", file_id))
