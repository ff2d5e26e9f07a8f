"""Celery's settings for a process that takes messages through the judging transport, and through nothing else."""

from __future__ import annotations

import ssl
from typing import Any, Final

from kombu.transport import TRANSPORT_ALIASES

from fsworker.broker.judge import printable
from fsworker.errors import ConfigError

_PATH: Final = "fsworker.broker.transport:Transport"
_ALIAS: Final = "fsworker"

# kombu takes the transport of redis+socket:// from the URL and ignores broker_transport; an alias is all it accepts.
TRANSPORT_ALIASES[_ALIAS] = _PATH


def broker_settings(url: str) -> dict[str, Any]:
    """Celery settings that make ``url`` (``redis``, ``rediss``, ``redis+socket``) go through this transport alone.

    They also close the ways around it (remote control, mingle, gossip) and let a worker wait for Redis for ever.
    ``broker_transport`` alone does not do: kombu drops it for ``redis+socket://``, and for ``rediss://`` without an
    ``ssl_…`` parameter any transport but the stock one speaks plain text. Certificates are verified unless the URL
    says ``ssl_cert_reqs=none``. Raises :class:`ConfigError` for another scheme.
    """
    settings = {
        "broker_url": url,
        "broker_transport": _PATH,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_enable_remote_control": False,
        "worker_consumer": "fsworker.broker.consumer:Consumer",
    }
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "redis+socket":
        return {**settings, "broker_url": f"{_ALIAS}+socket://{rest}"}
    if separator and scheme == "redis":
        return settings
    if separator and scheme == "rediss":
        tls = {} if "ssl_cert_reqs=" in rest else {"broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}}
        return {**settings, **tls}
    raise ConfigError(f"Redis URL scheme '{printable(scheme, 20)}': use redis://, rediss:// or redis+socket://")


def transport_options(visibility_timeout_s: float, unacked_key_prefix: str) -> dict[str, Any]:
    """``broker_transport_options`` for a worker. Roles must not share ``unacked_key_prefix``: each restores its own."""
    return {
        # A message that is not acknowledged for this long is delivered again: twice the hard time limit.
        "visibility_timeout": visibility_timeout_s,
        # Look for such messages every 10 s; kombu's default looks at every tenth occasion, each 100 s.
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # A worker killed during its look keeps the others from looking until this has passed (default: 300 s).
        "unacked_mutex_expire": 30,
        "unacked_key": f"{unacked_key_prefix}unacked",
        "unacked_index_key": f"{unacked_key_prefix}unacked_index",
        "unacked_mutex_key": f"{unacked_key_prefix}unacked_mutex",
        # A server that takes bytes and never answers blocks the main process for this long (default: for ever).
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        # Finds a peer that went without a word, between two commands.
        "socket_keepalive": True,
        # An idle connection is tried before it is used, and a pop without an answer is dropped, after 10 to 21 s.
        "health_check_interval": 10,
        # A command that timed out may have been done: repeating it is for the caller to decide.
        "retry_on_timeout": False,
    }
