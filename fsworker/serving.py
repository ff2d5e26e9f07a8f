"""How a stored file is offered to a browser: headers, conditional requests, ranges. Pure: no I/O.

Stored files are strangers' bytes on the application's own origin. So a browser must neither guess what they are
(``nosniff``) nor run them: only types that cannot carry code are shown inline, everything else is a download, and a
content security policy puts whatever is opened all the same into a sandbox. The name is the content's hash, so it is a
strong validator: a browser that has the file is told 304 without anybody looking at the disk.

Rules: RFC 9110 (conditional requests and ranges), RFC 6266 and 8187 (file names), RFC 8246 (immutable).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, cast
from urllib.parse import quote

from fsworker.errors import ConfigError
from fsworker.media import UNKNOWN, matches
from fsworker.model import Hash, shorten
from fsworker.store import layout

Disposition = Literal["inline", "attachment"]

INERT = (
    *("image/jpeg", "image/png", "image/gif", "image/webp", "image/avif", "image/bmp", "image/heic", "image/tiff"),
    *("image/x-icon", "image/vnd.microsoft.icon", "audio/*", "video/*", "text/plain"),
)
"""Types that browsers show and cannot execute. A list of what is known to be harmless: new dangers appear unasked."""

_BY_SUFFIX = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".heic": "image/heic",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".ico": "image/x-icon",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".wav": "audio/wav",
    ".m4a": "audio/mp4",
    ".flac": "audio/flac",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".txt": "text/plain",
    ".pdf": "application/pdf",
    ".zip": "application/zip",
}

_SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
_INERT_POLICY = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"

_CODE = ("application/wasm", "text/css")  # and scripts: what another page could load as its own, attachment or not
_SCRIPT = re.compile(r"(java|ecma|live|j)script")
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}\Z")

_YEAR_S = 365 * 86400
_MAX_NAME = 150
_JOINERS = "\u200c\u200d"  # part of words in some scripts, and of emoji; other format characters only deceive
_PLAIN = re.compile(r"[^A-Za-z0-9 !#$&'()+,.;=@\[\]^_`{}~-]")

_ENTITY_TAG = re.compile(r'\s*(W/)?"([^"]*)"\s*(?:,|\Z)')
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*\Z", re.IGNORECASE)


def file_headers(
    name: Hash,
    *,
    filename: str | None = None,
    media_type: str | None = None,
    disposition: str = "inline",
    immutable: bool = False,
    public: bool = False,
    inline_types: Iterable[str] = (),
) -> dict[str, str]:
    """The headers that describe a stored file, whoever sends its bytes.

    ``media_type`` is what ingest found (``IngestResult.media_type``); without it the suffix of ``filename`` decides,
    and only for harmless types. What is no media type counts as unknown. ``inline_types`` are allowed inline beside
    :data:`INERT`. ``immutable``: the URL will never mean another file. ``public``: shared caches may keep it.
    """
    if disposition not in ("inline", "attachment"):
        raise ConfigError(f"disposition {shorten(disposition)} is neither 'inline' nor 'attachment'")
    kind = checked_media_type(media_type, filename)
    shown = matches(kind, [*INERT, *inline_types])
    policy = _INERT_POLICY if matches(kind, list(INERT)) else _SANDBOX
    return {
        "Content-Type": content_type(kind),
        "Content-Disposition": content_disposition(cast(Disposition, disposition if shown else "attachment"), filename),
        "ETag": entity_tag(name),
        "Cache-Control": cache_control(immutable=immutable, public=public),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": policy,
    }


def accelerated(name: Hash, how: str, location: str) -> dict[str, str]:
    """The header that makes the web server send the file.

    ``how`` is ``nginx`` (``location`` is the internal URI of ``Data``) or ``sendfile`` (Apache's mod_xsendfile,
    lighttpd; ``location`` is the directory ``Data``).
    """
    header = "X-Sendfile" if how == "sendfile" else "X-Accel-Redirect"
    return {header: f"{location.rstrip('/')}/{layout.shard(name)}/{name}"}


def checked_media_type(media_type: str | None, filename: str | None) -> str:
    """A media type without parameters, in lower case; ``application/octet-stream`` for what is none."""
    if media_type is None:
        suffix = PurePosixPath(_last_part(filename or "")).suffix.lower()
        return _BY_SUFFIX.get(suffix, UNKNOWN)
    kind = media_type.partition(";")[0].strip().lower()
    return kind if _MEDIA_TYPE.match(kind) else UNKNOWN


def content_type(kind: str) -> str:
    """``Content-Type`` for a checked media type: never one under which another page could load the bytes as code."""
    if kind in _CODE or _SCRIPT.search(kind):
        return UNKNOWN
    return f"{kind}; charset=utf-8" if kind == "text/plain" else kind  # ingest says text/plain only of UTF-8


def entity_tag(name: Hash) -> str:
    """``ETag`` of a stored file: its hash, a strong validator."""
    return f'"{name}"'


def cache_control(*, immutable: bool, public: bool) -> str:
    """``Cache-Control``: ask again each time (the answer is mostly 304), or never again (RFC 8246)."""
    whose = "public" if public else "private"
    return f"{whose}, max-age={_YEAR_S}, immutable" if immutable else f"{whose}, no-cache"


def content_disposition(disposition: Disposition, filename: str | None) -> str:
    """``Content-Disposition`` (RFC 6266): an ASCII name for all, and the true one (RFC 8187) where that differs."""
    name = clean_filename(filename or "")
    if not name:
        return disposition
    path = PurePosixPath(name)
    plain = (_ascii(path.stem) or "file") + _ascii(path.suffix)
    simple = f'{disposition}; filename="{plain}"'
    return simple if plain == name else f"{simple}; filename*=UTF-8''{quote(name, safe='')}"


def clean_filename(text: str) -> str:
    """A file name out of whatever a browser or a database says: no directories, nothing invisible, not too long."""
    seen = "".join(char for char in _last_part(text) if _is_visible(char))
    name = " ".join(unicodedata.normalize("NFC", seen).split()).strip(" .") if seen.strip(" .") else ""
    if len(name) > _MAX_NAME:
        suffix = PurePosixPath(name).suffix[:20]
        name = name[: _MAX_NAME - len(suffix)] + suffix
    return name


def _ascii(text: str) -> str:
    bare = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _PLAIN.sub("_", bare)


def _last_part(text: str) -> str:
    return re.split(r"[/\\]", text)[-1]


def _is_visible(char: str) -> bool:
    """Not a control, not a lone surrogate, and none of the characters that turn or hide what follows (U+202E)."""
    return char in _JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


# -- requests ----------------------------------------------------------------------------------------------------------


def not_modified(if_none_match: str | None, name: Hash) -> bool:
    """Whether a GET or HEAD with this ``If-None-Match`` is answered by 304 (RFC 9110, 13.1.2: weak comparison)."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return any(tag == name for _, tag in _ENTITY_TAG.findall(if_none_match))


@dataclass(frozen=True)
class Part:
    """Bytes ``start`` to ``stop`` (exclusive) of a file of ``size_bytes``."""

    start: int
    stop: int
    size_bytes: int

    @property
    def length_bytes(self) -> int:
        """How many bytes these are."""
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """``Content-Range`` of a 206."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size_bytes}"


class UnsatisfiableRangeError(Exception):
    """The range lies beyond the end: 416."""


def requested_part(range_: str | None, if_range: str | None, name: Hash, size_bytes: int) -> Part | None:
    """The part that a request asks for; ``None``: the whole, with 200.

    A server may ignore a range (RFC 9110, 14.2): several ranges at once, other units, and what is malformed are. So is
    one whose ``If-Range`` is not this file's tag. Raises :class:`UnsatisfiableRangeError`.
    """
    match = _RANGE.match(range_.strip()) if range_ is not None else None
    if match is None or (if_range is not None and if_range.strip() != entity_tag(name)):
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, size_bytes - int(last)), size_bytes
    else:
        start, stop = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= size_bytes or start >= stop:
        raise UnsatisfiableRangeError
    return Part(start, stop, size_bytes)
