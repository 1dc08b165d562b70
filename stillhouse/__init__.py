"""Client of Stillhouse, a service that distils models.

    from pathlib import Path

    from stillhouse import Client

    with Client() as client:  # STILLHOUSE_URL and STILLHOUSE_API_KEY, or the service that `stillhouse up` runs here
        job = client.submit(spec)
        for event in client.watch(job.id):
            print(event.message)
        for artifact in client.artifacts(job.id):
            client.download(job.id, artifact.name, Path("student"))

`AsyncClient` has the same methods for asyncio. Both use only HTTP, and both raise `ServiceError` if the service
rejects a request, `Unreachable` if it does not respond.
"""

from stillhouse.asynchronous.client import AsyncClient
from stillhouse.errors import BadRequest, ClientError, FieldProblem, ServiceError, TransferError, Unreachable
from stillhouse.objects import (
    Artifact,
    Baseline,
    CatalogOption,
    CatalogPaper,
    Checkpoint,
    DefaultChoice,
    DeviceEstimate,
    Estimate,
    Event,
    Figures,
    File,
    Job,
    JobFailure,
    Key,
    LearnedFrom,
    ModelFile,
    Modules,
    Phase,
    Progress,
    Recommendation,
    RecommendedRecipe,
    Remark,
    ReportWarning,
    Result,
    Series,
    StoredModel,
    Validation,
)
from stillhouse.synchronous.client import Client

__all__ = [
    "Artifact",
    "AsyncClient",
    "BadRequest",
    "Baseline",
    "CatalogOption",
    "CatalogPaper",
    "Checkpoint",
    "Client",
    "ClientError",
    "DefaultChoice",
    "DeviceEstimate",
    "Estimate",
    "Event",
    "FieldProblem",
    "Figures",
    "File",
    "Job",
    "JobFailure",
    "Key",
    "LearnedFrom",
    "ModelFile",
    "Modules",
    "Phase",
    "Progress",
    "Recommendation",
    "RecommendedRecipe",
    "Remark",
    "ReportWarning",
    "Result",
    "Series",
    "ServiceError",
    "StoredModel",
    "TransferError",
    "Unreachable",
    "Validation",
]
