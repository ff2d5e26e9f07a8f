"""The words of fsworker as values: hashes, names, requests, results.

Everything here is frozen and checked when it is made, because it is made from what strangers send: a message on a
queue, a request file in a spool, a row of a keep-set. Whoever holds one of these values need not check it again; only a
:data:`Hash` may become part of a path. This is the ground layer and does no I/O.
"""

from fsworker.model.names import (
    EMPTY_HASH,
    Hash,
    app_of_job,
    batch_job_id,
    check_app,
    check_job_id,
    check_upload_name,
    is_hash,
    new_job_id,
    parse_hash,
    shorten,
)
from fsworker.model.outcomes import (
    ClaimResult,
    Failure,
    IngestResult,
    Outcome,
    PictureSize,
    Result,
    ThumbnailResult,
)
from fsworker.model.requests import (
    MAX_HASHES_PER_CLAIM,
    MAX_THUMBNAILS,
    MAX_UPLOADS_PER_TASK,
    REQUESTS,
    BatchItem,
    BatchRequest,
    ClaimRequest,
    IngestRequest,
    Request,
    ThumbnailRequest,
    describe,
)

__all__ = [
    "EMPTY_HASH",
    "MAX_HASHES_PER_CLAIM",
    "MAX_THUMBNAILS",
    "MAX_UPLOADS_PER_TASK",
    "REQUESTS",
    "BatchItem",
    "BatchRequest",
    "ClaimRequest",
    "ClaimResult",
    "Failure",
    "Hash",
    "IngestRequest",
    "IngestResult",
    "Outcome",
    "PictureSize",
    "Request",
    "Result",
    "ThumbnailRequest",
    "ThumbnailResult",
    "app_of_job",
    "batch_job_id",
    "check_app",
    "check_job_id",
    "check_upload_name",
    "describe",
    "is_hash",
    "new_job_id",
    "parse_hash",
    "shorten",
]
