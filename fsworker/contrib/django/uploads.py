"""Uploads that Django receives go straight into the spool, and are not copied when they are ingested.

::

    FILE_UPLOAD_HANDLERS = ["fsworker.contrib.django.uploads.SpoolUploadHandler"]
"""

from __future__ import annotations

from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler

from fsworker.contrib.django.files import client
from fsworker.errors import UploadRejectedError
from fsworker.spool.upload import Upload


class SpooledFile(UploadedFile):
    """What ``request.FILES`` holds: a file in the spool. Django closes it with the request; then, not ingested, it goes."""


class SpoolUploadHandler(FileUploadHandler):
    """Writes each file of a form into the spool as it comes. One larger than ``FSWORKER_MAX_BYTES`` ends the request."""

    upload: Upload | None = None

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        """Begin a file."""
        super().new_file(*args, **kwargs)
        self.upload = client().open_upload()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:  # noqa: ARG002 - Django's signature
        """Write a piece; nothing is passed on to other handlers."""
        assert self.upload is not None
        try:
            self.upload.write(raw_data)
        except UploadRejectedError as error:
            self.upload_interrupted()
            raise RequestDataTooBig(str(error)) from error

    def file_complete(self, file_size: int) -> SpooledFile:
        """Give the file to the request."""
        assert self.upload is not None
        upload, self.upload = self.upload, None
        upload.seek(0)
        return SpooledFile(upload, self.file_name, self.content_type, file_size, self.charset, self.content_type_extra)

    def upload_interrupted(self) -> None:
        """The browser has gone: forget what came."""
        if self.upload is not None:
            self.upload.close()
            self.upload = None
