"""The forms of a Redis URL: as it is configured, as Celery wants it, as redis-py wants it. Pure."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from fsworker.config import redact_url
from fsworker.errors import ConfigError


def celery_url(url: str) -> str:
    """The URL in the form that Celery wants: a Unix socket is ``redis+socket:///path?virtual_host=0``.

    Raises :class:`ConfigError` for anything but ``redis``, ``rediss``, ``unix`` and ``redis+socket``.
    """
    parts = _split(url)
    if parts.scheme != "unix":
        return url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{_credentials(parts)}{parts.path}?virtual_host={quote(database)}"


def client_url(url: str) -> str:
    """The URL in the form that redis-py wants: a Unix socket is ``unix:///path?db=0``. Raises as :func:`celery_url`."""
    parts = _split(url)
    if parts.scheme != "redis+socket":
        return url
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{_credentials(parts)}{quote(unquote(parts.path))}?db={quote(database)}"


def _credentials(parts: SplitResult) -> str:
    return f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"FSWORKER_REDIS_URL is not a URL: {error}") from None
    if parts.scheme not in ("redis", "rediss", "unix", "redis+socket"):
        raise ConfigError(
            f"FSWORKER_REDIS_URL {redact_url(url)!r} is not a Redis URL: write redis://host:6379/0, rediss://… for TLS, or "
            f"redis+socket:///path/to/socket"
        )
    return parts
