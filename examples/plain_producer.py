"""Ingest one file with plain Celery: no import of fsworker.

    python plain_producer.py redis://localhost:6379/0 /srv/files/Spool/shop shop photo.jpg

Prints the result as JSON. Exits with 1, and the reason, when the job failed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from pathlib import Path

from celery import Celery
from kombu import Exchange, Queue


def main(redis_url: str, spool: str, app_name: str, source: str) -> int:
    """Write the upload, send the task, wait for the result."""
    upload = uuid.uuid4().hex  # a name that is used once; what the file is called is the application's business
    write_upload(Path(source), Path(spool) / upload)

    app = Celery("plain", broker=redis_url, backend=redis_url)
    queue = f"fsworker.ingest.{app_name}"
    answer = app.send_task(
        "fsworker.ingest",
        kwargs={"upload": upload, "thumbnails": {"small": "100x100"}, "max_bytes": 50_000_000},
        queue=Queue(queue, Exchange(""), queue, no_declare=True),  # needs no more than the right to append to this list
        task_id=f"{app_name}.{uuid.uuid4()}",
    )
    try:
        result = answer.get(timeout=60)
    except Exception as error:  # noqa: BLE001 - its class is called as in fsworker.errors, made by Celery from its name
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    return 0


def write_upload(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target``, readable by the spool's group, its bytes on disk before anybody is told."""
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        os.fchmod(writer.fileno(), 0o640)  # the worker reads it through the group, whatever the umask
        writer.flush()
        os.fsync(writer.fileno())


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage: {sys.argv[0]} REDIS_URL SPOOL_DIRECTORY APPLICATION FILE")
    sys.exit(main(*sys.argv[1:]))
