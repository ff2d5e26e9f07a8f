"""The two questions that the rest of fsworker asks about pictures: what is this, and its thumbnails, please."""

from __future__ import annotations

import atexit
import logging
import os
import signal
from collections.abc import Mapping

from PIL import __version__ as pillow_version
from PIL import features

from fsworker.specification import Thumbnail
from fsworker.thumbnails.child import collect, run_limited
from fsworker.thumbnails.decode import HEIF_VERSION
from fsworker.thumbnails.forkserver import ForkServer, ServerDiedError, ServerGoneError
from fsworker.thumbnails.formats import MEDIA_TYPE, SIGNATURE_BYTES, sniff
from fsworker.thumbnails.limits import Limits
from fsworker.thumbnails.outcome import Made, PictureOutcome, Report
from fsworker.thumbnails.render import render

log = logging.getLogger(__name__)

_server: ForkServer | None = None

_PIPELINE_VERSION = 2  # counts changes here that change the bytes of any thumbnail


def _engine_version() -> str:
    versions = {"fsworker": _PIPELINE_VERSION, "pillow": pillow_version}
    versions |= {name: features.version(name) for name in ("libjpeg_turbo", "webp", "avif", "zlib", "littlecms2")}
    return " ".join(f"{name}={version}" for name, version in {**versions, "heif": HEIF_VERSION}.items() if version)


ENGINE_VERSION = _engine_version()
"""Names all that the bytes of a thumbnail depend on beside the original's bytes and the specification."""


def make_thumbnails(fd: int, specifications: Mapping[str, Thumbnail], limits: Limits | None = None) -> PictureOutcome:
    """Find out what picture an open regular file is, and make thumbnails of it, in one process with limits.

    ``fd`` is not closed, and its position is neither used nor moved. Nothing that the file contains makes this raise:
    each thumbnail that cannot be made is in ``failed``, with the reason. With no specifications only the headers are
    read; a file that does not begin like a picture costs one read and no process. Raises ``OSError`` if the file cannot
    be read, or this process can have no memory, descriptor or child; nothing is left behind then.
    """
    limits = limits or Limits()
    if sniff(os.pread(fd, SIGNATURE_BYTES, 0)) is None:
        return PictureOutcome(None, {}, dict.fromkeys(specifications, "not a picture of a format that is known here"))
    report, early = _decode(fd, specifications, limits)
    if report.input_error is not None:
        raise OSError(report.input_error, f"the original cannot be read: {os.strerror(report.input_error)}")
    made = {name: made for name, made in report.made.items() if name not in report.failed and _is_as_told(made)}
    missing = [name for name in specifications if name not in made and name not in report.failed]
    failed = {**report.failed, **dict.fromkeys(missing, early or "the decoder gave no result")}
    return PictureOutcome(report.picture, made, failed)


def start_fork_server() -> None:
    """From now on pictures of this process, and of its forks, are decoded by a fork server, which is starting."""
    global _server
    if _server is None:
        _server = ForkServer()
        os.register_at_fork(after_in_child=_server.begin_anew)
        atexit.register(_server.stop)  # it would end by itself; so there is nothing to warn of
    _server.start()


def _decode(fd: int, specifications: Mapping[str, Thumbnail], limits: Limits) -> tuple[Report, str | None]:
    if _server is None:
        return run_limited(render, fd, specifications, limits)
    for _ in range(2):
        try:
            return collect(_server.run, fd, specifications, limits)
        except ServerGoneError as error:
            log.warning("a picture is decoded in a fork of this process: the fork server cannot take it: %s", error)
            return run_limited(render, fd, specifications, limits)
        except ServerDiedError as error:
            log.warning("a picture's fork server was lost: %s", error)
    return collect(lambda *_: (signal.SIGKILL, False), fd, specifications, limits)


def _is_as_told(made: Made) -> bool:
    """Whether a thumbnail begins as its media type does: a decoder that was taken over shall not plant, say, a page."""
    name = sniff(made.read_start(SIGNATURE_BYTES))
    return name is not None and MEDIA_TYPE[name] == made.media_type
