"""A photo gallery: drop photographs, see thumbnails, delete. One Starlette application, one SQLite file.

It keeps what it must not lose in its database: for each photograph the job that stores it, then its hashes. The store
keeps the bytes as long as the gallery's keep-set names them; the gallery publishes that every minute, and after each
deletion. Settings: ``FSWORKER_…`` (``run.py`` sets them), and ``GALLERY_DATABASE``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from fsworker.contrib.starlette import Files
from fsworker.errors import FSWorkerError, JobTimeoutError, UploadError
from fsworker.model import IngestResult
from fsworker.serving import clean_filename

HERE = Path(__file__).parent
THUMBNAILS = {"small": "320x320"}
NO_PHOTOGRAPH = "This is not a photograph that can be shown."
LOOK_EVERY_S = 0.3
PUBLISH_EVERY_S = 60.0

TABLE = """
CREATE TABLE IF NOT EXISTS photo (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never used again, so the URL of a photograph never means another
    name TEXT NOT NULL,
    job TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',  -- then 'ready', 'failed', or 'duplicate' of another photograph
    message TEXT NOT NULL DEFAULT '',
    same_as INTEGER,
    hash TEXT, media_type TEXT, width INTEGER, height INTEGER,
    small TEXT, small_type TEXT, small_width INTEGER, small_height INTEGER
)
"""

log = logging.getLogger("gallery")
files = Files("gallery", max_bytes=50_000_000)


# -- the database ------------------------------------------------------------------------------------------------------


def connect() -> sqlite3.Connection:
    """A connection of one's own; each call here makes one, so that threads never share."""
    connection = sqlite3.connect(os.environ["GALLERY_DATABASE"], timeout=30, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def run(statement: str, *values: object) -> list[sqlite3.Row]:
    """One statement, one transaction."""
    with closing(connect()) as connection:
        return connection.execute(statement, values).fetchall()


def kept_hashes() -> Iterator[str]:
    """Every hash that a photograph has, in one snapshot: what must not be collected."""
    with closing(connect()) as connection:
        rows = connection.execute("SELECT hash, small FROM photo WHERE state = 'ready'")
        for row in rows:
            yield from (name for name in row if name)


def finish(photo_id: int, result: IngestResult) -> None:
    """Note what became of an upload: a photograph, no photograph, or one that is here already."""
    small = result.thumbnails.get("small")
    if small is None:
        run("UPDATE photo SET state = 'failed', message = ? WHERE id = ?", NO_PHOTOGRAPH, photo_id)
        return
    with closing(connect()) as connection:
        connection.execute("BEGIN IMMEDIATE")
        same = connection.execute(
            "SELECT id FROM photo WHERE hash = ? AND state = 'ready' AND id <> ?", (result.hash, photo_id)
        ).fetchone()
        if same is not None:
            connection.execute("UPDATE photo SET state = 'duplicate', same_as = ? WHERE id = ?", (same["id"], photo_id))
        else:
            connection.execute(
                "UPDATE photo SET state = 'ready', hash = ?, media_type = ?, width = ?, height = ?,"
                " small = ?, small_type = ?, small_width = ?, small_height = ? WHERE id = ?",
                (
                    *(result.hash, result.media_type, result.width, result.height),
                    *(small.hash, small.media_type, small.width, small.height),
                    photo_id,
                ),
            )
        connection.execute("COMMIT")


# -- in the background -------------------------------------------------------------------------------------------------


async def look_after_jobs() -> None:
    """Ask for the results of waiting photographs, whether their browser is still there or not."""
    while True:
        for row in await run_in_threadpool(run, "SELECT id, job FROM photo WHERE state = 'waiting'"):
            try:
                result = await files.result(row["job"], timeout=0)
                assert isinstance(result, IngestResult)
                await run_in_threadpool(finish, row["id"], result)
            except JobTimeoutError:
                continue
            except FSWorkerError as error:
                log.info(
                    "photograph %s, %s: %s", row["id"], row["job"], error
                )  # names places that visitors need not know
                message = NO_PHOTOGRAPH if isinstance(error, UploadError) else "It could not be stored."
                failed = "UPDATE photo SET state = 'failed', message = ? WHERE id = ?"
                await run_in_threadpool(run, failed, message, row["id"])
        await asyncio.sleep(LOOK_EVERY_S)


async def publish_regularly() -> None:
    """Publish the keep-set, at once and then every minute."""
    while True:
        await publish()
        await asyncio.sleep(PUBLISH_EVERY_S)


async def publish() -> None:
    """Publish the keep-set; when Redis is away, the last one stays in force."""
    try:
        await run_in_threadpool(lambda: files.client.keep.publish(kept_hashes, allow_empty=True))
    except FSWorkerError as error:
        log.warning("the keep-set was not published: %s", error)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Runs the background tasks as long as the application."""
    await run_in_threadpool(run, TABLE)
    tasks = [asyncio.create_task(look_after_jobs()), asyncio.create_task(publish_regularly())]
    yield
    for task in tasks:
        task.cancel()


# -- requests ----------------------------------------------------------------------------------------------------------
# What changes something is PUT or DELETE: no other site can make a browser send those.


async def page(_: Request) -> Response:
    """The page; its own security policy lets it load nothing from elsewhere."""
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
    return FileResponse(HERE / "index.html", headers={"Content-Security-Policy": policy})


async def script(_: Request) -> Response:
    """The page's script."""
    return FileResponse(HERE / "gallery.js")


async def style(_: Request) -> Response:
    """The page's style."""
    return FileResponse(HERE / "gallery.css")


async def photos(_: Request) -> Response:
    """All photographs, newest first."""
    columns = "id, name, state, message, same_as, width, height, small_width, small_height"
    rows = await run_in_threadpool(run, f"SELECT {columns} FROM photo ORDER BY id DESC LIMIT 1000")
    return JSONResponse([dict(row) for row in rows], headers={"Cache-Control": "no-store"})


async def add(request: Request) -> Response:
    """Take a photograph: the body is the file, ``?name=`` its name."""
    name = clean_filename(request.query_params.get("name", "")) or "photograph"
    with await files.receive(request) as upload:
        job = await files.ingest(upload, thumbnails=THUMBNAILS, media_types=["image/*"])
    (row,) = await run_in_threadpool(run, "INSERT INTO photo (name, job) VALUES (?, ?) RETURNING id", name, job.id)
    return JSONResponse({"id": row["id"]}, status_code=202)


async def show(request: Request) -> Response:
    """A photograph, or its thumbnail. Here everybody may see all: another application decides that first."""
    rows = await run_in_threadpool(
        run, "SELECT * FROM photo WHERE id = ? AND state = 'ready'", request.path_params["id"]
    )
    if not rows:
        raise HTTPException(404)
    row = rows[0]
    if request.path_params["size"] == "small":
        return await files.serve(request, row["small"], media_type=row["small_type"], immutable=True)
    return await files.serve(request, row["hash"], filename=row["name"], media_type=row["media_type"], immutable=True)


async def remove(request: Request) -> Response:
    """Forget a photograph. Its file goes when no application's keep-set has it."""
    await run_in_threadpool(run, "DELETE FROM photo WHERE id = ?", request.path_params["id"])
    await publish()
    return Response(status_code=204)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/gallery.js", script),
        Route("/gallery.css", style),
        Route("/photos", photos),
        Route("/photos", add, methods=["PUT"]),
        Route("/photos/{id:int}", remove, methods=["DELETE"]),
        Route("/photos/{id:int}/{size}", show),
    ],
)
