"""Errors of the client, each with its exit code on the command line."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel


class FieldProblem(BaseModel):
    """One invalid field: its path, the fault, and what would be accepted."""

    param: str
    message: str
    accepted: str | None = None


class ClientError(Exception):
    """Base of all errors of the client."""

    exit_code: ClassVar[int] = 1
    code: str = "client_error"
    hint: str | None = None

    def document(self) -> dict[str, Any]:
        """The error in the form of the service's error envelope."""
        return {"error": {"type": "client", "code": self.code, "message": str(self), "param": None, "errors": []}}


class ServiceError(ClientError):
    """The service rejected a request.

    `status` is the HTTP status, `code` the name of the error, `errors` every invalid field, `request_id` the id of the
    request in the service's log.
    """

    def __init__(
        self,
        status: int,
        *,
        type: str,
        code: str,
        message: str,
        param: str | None = None,
        errors: list[FieldProblem] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.param, self.request_id = status, type, code, param, request_id
        self.errors = errors or []
        self.retry_after: float | None = None
        """Seconds that the service asks to wait, if it does."""
        if status == 401:
            self.hint = "Is STILLHOUSE_API_KEY a key of this service?"

    def document(self) -> dict[str, Any]:
        errors = [problem.model_dump() for problem in self.errors]
        body = {"type": self.type, "code": self.code, "message": str(self), "param": self.param, "errors": errors}
        return {"error": body | {"request_id": self.request_id}}


class Unreachable(ClientError):
    """No service is configured, or it does not respond."""

    exit_code = 3
    code = "unreachable"
    hint = "Start one with `stillhouse up`, or set STILLHOUSE_URL and STILLHOUSE_API_KEY."


class TransferError(ClientError):
    """A file was not transferred completely; `upload_id` resumes an interrupted upload."""

    code = "transfer_failed"

    def __init__(self, message: str, *, upload_id: str | None = None) -> None:
        super().__init__(message)
        self.upload_id = upload_id


class BadRequest(ClientError):
    """An argument is invalid: a file that does not exist, a document that can't be read."""

    exit_code = 2
    code = "bad_request"
