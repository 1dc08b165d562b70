"""Examples in the OpenAPI document: one for the body of each request, and for each body that is answered with."""

from __future__ import annotations

from typing import Any

JOB, FILE, UPLOAD = (f"{kind}_01k9zq3f8t5v7w9x1y3z5a7b9c" for kind in ("job", "file", "upload"))
MODEL, KEY, PROJECT, CHECKPOINT, ARTIFACT = (
    f"{kind}_01k9zq3f8t5v7w9x1y3z5a7b9c" for kind in ("model", "key", "proj", "ckpt", "art")
)
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
MADE, STARTED, ENDED = "2026-11-29T06:00:00.000Z", "2026-11-29T06:00:02.000Z", "2026-11-29T06:01:30.000Z"

SPEC: dict[str, Any] = {
    "name": "digits nkd",
    "data": {"train": FILE, "eval": FILE},
    "teacher": {"model": MODEL},
    "student": {"architecture": "mlp", "hidden": [16]},
    "recipe": {
        "losses": [{"kind": "cross-entropy"}, {"kind": "nkd", "gamma": 1.5, "temperature": 2.0}],
        "optimizer": {"kind": "adamp", "lr": 0.01},
        "schedule": {"kind": "cosine", "warmup_steps": 10},
        "epochs": 100,
    },
    "evaluation": {"diagnostics": [{"kind": "calibration", "bins": 10}]},
}
_JOB_VIEW: dict[str, Any] = {
    "id": JOB,
    "object": "job",
    "name": "digits nkd",
    "status": "running",
    "is_final": False,
    "phase": "training",
    "phases": [
        {"attempt": 1, "phase": "staging", "started_at": STARTED, "ended_at": STARTED},
        {"attempt": 1, "phase": "training", "started_at": STARTED, "ended_at": None},
    ],
    "progress": {
        "step": 120,
        "total_steps": 200,
        "epoch": 60.0,
        "samples_per_second": 5100.0,
        "seconds_left": 2.0,
        "progress_at": STARTED,
    },
    "queue_position": None,
    "reason": None,
    "warnings": [],
    "result": None,
    "error": None,
    "model_id": None,
    "checkpoint_id": CHECKPOINT,
    "cloned_from": None,
    "attempt": 1,
    "failures": 0,
    "interruptions": 0,
    "max_attempts": 3,
    "priority": 50,
    "queue": "any",
    "created_at": MADE,
    "started_at": STARTED,
    "finished_at": None,
    "status_at": STARTED,
    "deadline_at": ENDED,
    "spec": SPEC,
}
_ARTIFACT = {
    "object": "job.artifact",
    "id": ARTIFACT,
    "name": "model.safetensors",
    "media_type": "application/octet-stream",
    "size": 5100,
    "sha256": SHA256,
    "attempt": 1,
    "created_at": ENDED,
}
_EVENT = {
    "object": "job.event",
    "seq": 3,
    "type": "phase",
    "level": "info",
    "message": "training",
    "data": {"phase": "training"},
    "created_at": STARTED,
}
_FILE_VIEW = {
    "id": FILE,
    "object": "file",
    "name": "digits.npz",
    "format": "npz",
    "size": 51_200,
    "sha256": SHA256,
    "created_at": MADE,
}
_FILE_DETAIL = {
    **_FILE_VIEW,
    "arrays": {"x": {"shape": [200, 8, 8], "dtype": "u1"}, "y": {"shape": [200], "dtype": "i8"}},
    "first_line": None,
}
_UPLOAD_VIEW = {
    "id": UPLOAD,
    "object": "upload",
    "name": "digits.npz",
    "status": "pending",
    "size": 51_200,
    "sha256": SHA256,
    "parts": [{"object": "upload.part", "number": 1, "size": 51_200, "sha256": SHA256}],
    "max_part_bytes": 67_108_864,
    "file_id": None,
    "created_at": MADE,
    "expires_at": "2026-11-30T06:00:00.000Z",
}
CONFIG = {
    "architecture": {"architecture": "mlp", "hidden": [16]},
    "input": {"channels": 1, "height": 8, "width": 8},
    "preprocessing": {"scale": 0.0625, "mean": [0.3], "std": [0.4]},
    "classes": 10,
}
_MODEL_FILE = {"name": "model.safetensors", "size": 5100, "sha256": SHA256, "media_type": "application/octet-stream"}
_MODEL_VIEW = {
    "id": MODEL,
    "object": "model",
    "name": "digits nkd",
    "job_id": JOB,
    "file_id": None,
    "teacher_id": MODEL,
    "format": "safetensors",
    "config": CONFIG,
    "parameters": 1210,
    "files": [_MODEL_FILE],
    "created_at": ENDED,
}
_KEY_VIEW = {
    "id": KEY,
    "object": "key",
    "name": "nightly jobs",
    "hint": "still_4fK2",
    "scopes": ["read", "write"],
    "created_at": MADE,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": STARTED,
}
_PROJECT_VIEW = {"id": PROJECT, "object": "project", "name": "default", "created_at": MADE}
_OPTION = {
    "object": "catalog.option",
    "group": "schedules",
    "kind": "constant",
    "description": "The same rate throughout, after the warm-up.",
    "equation": None,
    "applies": None,
    "tasks": None,
    "paper": None,
    "defaults": {"kind": "constant", "warmup_steps": 0},
    "json_schema": {"type": "object"},
}


def _page(item: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [item], "has_more": False, "first_id": item["id"], "last_id": item["id"]}


BODIES: dict[str, Any] = {
    "JobSpec": SPEC,
    "JobWithoutRecipe": {key: value for key, value in SPEC.items() if key != "recipe"},
    "CloneOverrides": {"name": "digits nkd, longer", "priority": 60},
    "JobPatch": {"priority": 80},
    "UploadRequest": {"name": "digits.npz", "size": 51_200, "sha256": SHA256},
    "Completion": {"sha256": SHA256},
    "ModelRequest": {"file": FILE, "config": CONFIG, "name": "digits"},
    "ExtractRequest": {"row": 12, "name": "smaller encoder"},
    "DiagnosisRequest": {
        "data": {"train": FILE, "eval": FILE},
        "evaluation": {"diagnostics": [{"kind": "mahalanobis"}, {"kind": "hessian", "samples": 512}]},
        "name": "digits, diagnosed",
    },
    "KeyRequest": {"name": "nightly jobs", "scopes": ["read", "write"], "expires_in_seconds": 2_592_000.0},
}
"""Bodies of requests, by the name of their schema."""
ANSWERS: dict[str, Any] = {
    "JobView": _JOB_VIEW,
    "Page_JobView_": _page(_JOB_VIEW),
    "ValidationView": {
        "object": "job.validation",
        "valid": False,
        "errors": [
            {
                "param": "recipe.losses[1].gama",
                "message": "is not a known key; did you mean 'gamma'?",
                "accepted": "one of gamma, kind, temperature, weight",
            }
        ],
        "more_errors": 0,
        "spec": None,
        "defaults": [],
        "warnings": [],
        "steps_per_epoch": None,
        "total_steps": None,
        "parameters": None,
        "estimate": None,
    },
    "RecommendationView": {
        "object": "recommendation",
        "basis": "past_jobs",
        "reason": (
            "gradient boosting over 64 past jobs, 64 of them of this task on 5 data sets; 12 of their recipes are"
            " accepted for this job"
        ),
        "recipes": [
            {
                "recipe": SPEC["recipe"],
                "expected_ratio": 0.97,
                "lowest_ratio": 0.95,
                "highest_ratio": 0.98,
                "job_ids": [JOB],
                "reason": None,
            }
        ],
        "learned_from": {
            "jobs": 64,
            "data_sets": 5,
            "job_ids": [JOB],
            "mean_absolute_error": 0.03,
            "rank_correlation": 0.4,
        },
        "notes": ["the teacher's score on the data is unknown: no earlier job used both"],
    },
    "EventPage": {"object": "list", "data": [_EVENT], "has_more": False},
    "MetricsView": {
        "object": "job.metrics",
        "data": [{"name": "train/loss", "steps": [1, 2, 3], "values": [2.3, 1.9, 1.6]}],
    },
    "CheckpointList": {
        "object": "list",
        "data": [
            {
                "object": "job.checkpoint",
                "id": CHECKPOINT,
                "attempt": 1,
                "step": 100,
                "size": 15_300,
                "created_at": STARTED,
            }
        ],
    },
    "ArtifactList": {"object": "list", "data": [_ARTIFACT]},
    "JobResultView": {
        "object": "job.result",
        "job_id": JOB,
        "model_id": MODEL,
        "metric": "accuracy",
        "higher_is_better": True,
        "value": 0.957,
        "teachers": {"teacher": 0.982},
        "difference": -0.025,
        "alone": {"job_id": JOB, "name": "digits alone", "value": 0.907, "difference": 0.05},
        "warnings": [],
        "artifacts": [_ARTIFACT],
    },
    "FileDetailView": _FILE_DETAIL,
    "Page_FileView_": _page(_FILE_VIEW),
    "UploadView": _UPLOAD_VIEW,
    "PartView": _UPLOAD_VIEW["parts"][0],  # type: ignore[index]
    "DeletedView": {"id": FILE, "object": "file", "deleted": True},
    "ModelView": _MODEL_VIEW,
    "ModelDetailView": {**_MODEL_VIEW, "report": {"student": {"accuracy": 0.957}}, "children": []},
    "Page_ModelView_": _page(_MODEL_VIEW),
    "ModulesView": {
        "object": "model.modules",
        "model_id": MODEL,
        "source": "architecture",
        "complete": True,
        "paths": ["0", "1", "2", "3"],
    },
    "KeyView": _KEY_VIEW,
    "NewKeyView": {**_KEY_VIEW, "key": "still_…"},
    "Page_KeyView_": _page(_KEY_VIEW),
    "ProjectView": _PROJECT_VIEW,
    "Page_ProjectView_": _page(_PROJECT_VIEW),
    "OptionList": {"object": "list", "data": [_OPTION]},
    "Health": {"status": "ok", "reasons": {}},
    "Alive": {"status": "ok"},
    "Version": {"object": "version", "version": "0.1.0"},
}
"""Bodies of answers, by the name of their schema."""
EVENTS = f"""id: 3
event: phase
data: {{"object":"job.event","seq":3,"type":"phase","level":"info","message":"training","data":{{"phase":"training"}},\
"created_at":"{STARTED}"}}

"""
"""An event as a stream sends it."""
ERRORS: dict[int, tuple[str, str, str, str | None]] = {
    400: ("invalid_request", "malformed_json", "the body is not JSON: Expecting value at character 0", None),
    401: ("authentication", "invalid_key", "no key was given: send `Authorization: Bearer still_…`", None),
    403: ("permission", "missing_scope", "this needs a key with the scope 'write'", None),
    404: ("not_found", "job_not_found", f"there is no job '{JOB}'", None),
    409: ("conflict", "wrong_state", "a job that is succeeded can't be cancelled", "status"),
    410: ("not_found", "content_gone", "the content was deleted", None),
    413: ("too_large", "body_too_large", "the body has more than 1048576 bytes", None),
    414: ("too_large", "query_too_long", "the query has more than 16384 bytes", None),
    415: ("invalid_request", "unsupported_media_type", "the body is 'text/plain'; accepted: application/json", None),
    416: ("invalid_request", "range_not_satisfiable", "not satisfiable; accepted: one range within bytes 0-5099", None),
    422: ("invalid_request", "invalid_fields", "limit: input should be less than or equal to 100", "limit"),
    429: ("rate_limited", "too_many_streams", "this key has 500 streams open, which is the most", None),
    431: ("too_large", "headers_too_large", "the headers have more than 32768 bytes", None),
    503: ("unavailable", "database_unavailable", "the database can't be reached or is full", None),
}
"""Type, code, message and param of an error of each status."""
