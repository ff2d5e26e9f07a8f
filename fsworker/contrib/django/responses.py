"""Files and jobs as Django responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from fsworker.contrib.answers import FilePart
from fsworker.contrib.django.files import answers


def serve(request: HttpRequest, hash: str, **how: Any) -> HttpResponseBase:  # noqa: A002 - the public name
    """Answer a request for a stored file; decide first whether this visitor may see it.

    ``how`` are the options of :meth:`fsworker.Client.response_headers`. With ``FSWORKER_SERVE_WITH=nginx`` nginx sends
    the bytes; without, this process does, ranges included. 304, 404, 405 and 416 are answered where they are due.
    """
    answer = answers().answer(request.method or "", request.headers.get, hash, **how)
    if answer.body is None:
        return HttpResponse(status=answer.status, headers=answer.headers)
    body = _asynchronously(answer.body) if isinstance(request, ASGIRequest) else answer.body
    return StreamingHttpResponse(body, status=answer.status, headers=answer.headers)


async def _asynchronously(body: FilePart) -> AsyncIterator[bytes]:
    """Read in threads, so that a slow disk does not hold up the loop."""
    pieces = iter(body)
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        body.close()
