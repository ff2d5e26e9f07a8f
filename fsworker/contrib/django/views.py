"""The views behind :mod:`fsworker.contrib.django.urls`."""

from __future__ import annotations

from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse

from fsworker.contrib.answers import job_report
from fsworker.contrib.django.files import client
from fsworker.contrib.django.responses import serve
from fsworker.contrib.django.signing import is_signed
from fsworker.errors import UploadRejectedError


def file(request: HttpRequest, hash: str, signature: str, filename: str) -> HttpResponseBase:  # noqa: A002
    """A file for whoever has its signed URL. The URL never means another file, so browsers keep what they got."""
    if not is_signed(hash, filename, signature):
        raise Http404("No such file")
    return serve(request, hash, filename=filename, immutable=True)


def job(request: HttpRequest, job_id: str) -> HttpResponseBase:  # noqa: ARG001 - a view
    """How a job stands, as JSON, for whoever knows its id, which is 128 random bits."""
    try:
        report = job_report(client().job(job_id))
    except UploadRejectedError:
        raise Http404("No such job") from None
    return JsonResponse(report, headers={"Cache-Control": "no-store"})
