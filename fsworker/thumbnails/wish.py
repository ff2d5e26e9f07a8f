"""A picture's wish, as it is told from process to process: the specifications by name, and the limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple

from fsworker.specification import Thumbnail
from fsworker.thumbnails.limits import Limits

MAX_WISH_BYTES = 100_000
"""What one message between the processes may have."""


def format_wish(specifications: Mapping[str, Thumbnail], limits: Limits) -> bytes:
    """A wish as JSON."""
    return json.dumps([{name: wish.to_json() for name, wish in specifications.items()}, astuple(limits)]).encode()


def parse_wish(message: bytes) -> tuple[dict[str, Thumbnail], Limits]:
    """The opposite of :func:`format_wish`, whose work ``message`` is trusted to be."""
    wishes, limits = json.loads(message)
    return {name: Thumbnail.parse(wish) for name, wish in wishes.items()}, Limits(*limits)
