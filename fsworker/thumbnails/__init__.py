"""Thumbnails: a picture's bytes and specifications in, thumbnails' bytes out. The only package that imports PIL.

The order of its modules, ground first: ``formats`` (what is decoded at all), ``seccomp`` and ``limits`` (what one picture may
cost and do), ``outcome`` (results, and how they come out of the limited process), ``source``, ``jpeg``; with Pillow:
``decode``, ``colour``, ``resize``, ``encode``, ``animation``, and ``render`` over them; ``heap`` and ``child`` (the limited
process), ``wish`` (what it is told), ``spare`` (one that is forked ahead), ``forkserver`` and ``forkserver_process`` (who forks
it), ``make`` and ``files`` (what others call).
"""

from __future__ import annotations

from fsworker.thumbnails.files import normalize_file, resize_file
from fsworker.thumbnails.limits import Limits
from fsworker.thumbnails.make import ENGINE_VERSION, make_thumbnails, start_fork_server
from fsworker.thumbnails.outcome import Made, Picture, PictureOutcome
from fsworker.thumbnails.render import warm_up

__all__ = [
    "ENGINE_VERSION",
    "Limits",
    "Made",
    "Picture",
    "PictureOutcome",
    "make_thumbnails",
    "normalize_file",
    "resize_file",
    "start_fork_server",
    "warm_up",
]
