"""Settings: one frozen, typed value made from the environment and a TOML file.

The environment (``FSWORKER_<NAME>``) wins over the file (``FSWORKER_CONFIG``, the same names in lower case; tables
group them, so ``[redis] url = …`` is ``redis_url``). Unknown names are refused, with the nearest known one, because a
misspelt ``FSWORKER_GRACE`` must not silently mean the default.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fsworker.errors import ConfigError

ENV_PREFIX = "FSWORKER_"
_CONFIG_VARIABLE = "FSWORKER_CONFIG"

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PASSWORD_OPTION = re.compile(r"((?:^|[&;])password=)[^&;]*", re.IGNORECASE)
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?\s*\Z")
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_duration(text: object) -> float:
    """Seconds from ``90s``, ``1.5h``, ``30d``, ``500ms``, ``2w`` (or ``0``). Raises ``ValueError`` naming the form."""
    if isinstance(text, str):
        if match := _DURATION.match(text):
            return float(match[1]) * _SECONDS[match[2]]
        if text.strip() == "0":
            return 0.0
    elif isinstance(text, (int, float)) and not isinstance(text, bool) and text == 0:
        return 0.0
    raise ValueError(f"{text!r} is not a duration: write a number and a unit, as in 90s, 15m, 24h, 30d")


def parse_size(text: object) -> int:
    """Bytes from ``50MB`` (10⁶), ``50MiB`` (2²⁰), ``1.5GB`` or a plain count. Raises ``ValueError`` naming the form."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if isinstance(text, str) and len(text) < 40 and (match := _SIZE.match(text)):
        return int(float(match[1]) * _BYTES[(match[2] or "").replace("K", "k")])
    raise ValueError(f"{text!r} is not a size: write bytes, or a number and a unit, as in 500kB, 50MB, 2GiB")


def format_duration(seconds: float) -> str:
    """Write seconds the way a setting is written, in the largest unit that divides them well: ``36h``, ``90s``."""
    for unit in ("d", "h", "m"):
        size = _SECONDS[unit]
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds / size)}{unit}"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"  # not :g, which writes 1e+06


def _parse_number(text: object) -> object:
    if isinstance(text, str):
        try:
            return float(text) if "." in text else int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
    return text


def _parse_list(text: object) -> object:
    return tuple(part for part in re.split(r"[\s,]+", text) if part) if isinstance(text, str) else text


def _parse_off(text: object) -> object:
    return None if text in ("off", "never", "none") else parse_duration(text)


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, le=10 * 365 * 86400.0)]
Interval = Annotated[Annotated[float, Field(ge=1, le=10 * 365 * 86400.0)] | None, BeforeValidator(_parse_off)]
Size = Annotated[int, BeforeValidator(parse_size)]
Number = Annotated[int, BeforeValidator(_parse_number)]
Fraction = Annotated[float, BeforeValidator(_parse_number), Field(ge=0, le=1)]
MediaTypes = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[a-zA-Z0-9!#$&^_.+-]{1,127}/([a-zA-Z0-9!#$&^_.+-]{1,127}|\*)$")], ...],
    BeforeValidator(_parse_list),
]
DirectoryPath = Annotated[
    Path,
    BeforeValidator(
        lambda v: Path(os.path.abspath(os.path.expanduser(v))) if isinstance(v, (str, Path)) and str(v) else None
    ),
]


class Settings(BaseModel):
    """Everything that can be set. Durations are seconds, sizes bytes; ``None`` means not set (or, for beat, off)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # where
    store: DirectoryPath | None = None
    spool: DirectoryPath | None = None  # for a client that sees only Spool/<app>
    redis_url: str | None = None
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")] = "fsworker"
    state_dir: DirectoryPath | None = None
    role: Literal["ingest", "maintenance"] = "ingest"

    # uploads
    max_bytes: Size = 10 * 2**30
    max_pixels: Annotated[int, BeforeValidator(_parse_number), Field(gt=0)] = 50_000_000
    durability: Literal["full", "batch", "none"] = "full"
    result_retention: Duration = 7 * 86400.0
    error_retention: Duration = 30 * 86400.0
    max_attempts: Annotated[int, BeforeValidator(_parse_number), Field(ge=1, le=100)] = 3

    # decoding, in the limited child
    thumbnail_memory: Size = 512 * 2**20
    thumbnail_cpu_time: Duration = 20.0
    thumbnail_recall: Duration = 86400.0  # how long Redis remembers what was made; about 300 bytes each

    # collection
    grace: Duration | None = None  # only ever raises the store's own
    keep_set_max_age: Duration = 48 * 3600.0
    max_shrink: Fraction = 0.5
    max_trash: Fraction = 0.25
    trash_retention: Duration = 30 * 86400.0
    max_clock_skew: Duration = 60.0

    # verification
    verify_period: Duration = 30 * 86400.0
    verify_rate: Size = 50 * 10**6
    mirror: DirectoryPath | None = None  # a copy of the store (rsync -a) to heal from

    # serving
    serve_with: Literal["nginx", "sendfile", "stream"] | None = None  # None: helpers stream, headers are for nginx
    serve_location: Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]*$")] = "/FileStruct/Data"
    serve_inline: MediaTypes = ()

    # queue
    concurrency: Annotated[int, BeforeValidator(_parse_number), Field(ge=0, le=1024)] = 0  # 0: one a core
    task_time_limit: Annotated[float, BeforeValidator(parse_duration), Field(ge=1)] = 600.0
    visibility_timeout: Annotated[float, BeforeValidator(parse_duration), Field(ge=1)] = 120.0
    log_json: bool = False

    # beat; "off" disables an entry
    sweep_every: Interval = 60.0
    collect_every: Interval = 86400.0
    purge_every: Interval = 86400.0
    verify_every: Interval = 300.0

    def redacted_redis_url(self) -> str | None:
        """The Redis URL with any password replaced by ``***``, for logs and reports."""
        return redact_url(self.redis_url)

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.model_dump().items() if k != "redis_url"}
        return f"Settings(redis_url={self.redacted_redis_url()!r}, {shown})"

    __str__ = __repr__


def redact_url(url: str | None) -> str | None:
    """Hide the password of a URL, before its host or among its options; of what is no URL, everything."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    parts = parts._replace(query=_PASSWORD_OPTION.sub(r"\1***", parts.query))
    if parts.password is not None:
        host = parts.netloc.rpartition("@")[2]
        parts = parts._replace(netloc=f"{parts.username or ''}:***@{host}")
    return urlunsplit(parts) if parts.password is not None or "***" in parts.query else url


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings; ``overrides`` (those not ``None``) win over the environment, which wins over the file.

    Raises :class:`ConfigError` that names the variable or the key, for an unknown name, a value of the wrong form, or a
    file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if path := environ.get(_CONFIG_VARIABLE):
        for name, value in _read_file(Path(path)).items():
            values[name], origin[name] = value, f"{name} in {path}"
    for variable, text in environ.items():
        if variable.startswith(ENV_PREFIX) and variable != _CONFIG_VARIABLE:
            name = variable.removeprefix(ENV_PREFIX).lower()
            origin[name] = variable
            if text == "":
                values.pop(name, None)  # an empty variable is an unset one, as shells and compose files make them
                _check_known(name, variable)
            else:
                values[name] = text
    for name, value in overrides.items():
        if value is not None:
            values[name], origin[name] = value, name
    for name in values:
        _check_known(name, origin[name])
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"setting {origin.get(name, name)}: {reason}") from None


def _check_known(name: str, where: str) -> None:
    if name in Settings.model_fields:
        return
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = f"; did you mean {near[0]} ({ENV_PREFIX}{near[0].upper()})?" if near else ""
    raise ConfigError(f"unknown setting {where}{hint}")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            tree = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{_CONFIG_VARIABLE} names {path}, which cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _flatten(tree, "")


def _flatten(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """``{"redis": {"url": …}}`` → ``{"redis_url": …}``: tables only group."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}_") if isinstance(value, dict) else {name: value})
    return flat
