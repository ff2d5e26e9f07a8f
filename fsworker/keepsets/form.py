"""The form of a keep-set: what an application keeps, packed so that twenty million hashes are read in flat memory. Pure.

A keep-set is published as one *generation* under keys that no other generation uses::

    fsworker:keep:shop:manifest               the manifest (JSON): the commit; it names the generation
    fsworker:keep:shop:<generation>:<xx>:<n>  part n of shard xx: hashes that begin with the byte xx, 20 raw bytes each

A shard's parts are full but for the last, so its count says how many there are and how long each is. The manifest has
count and digest of each shard: a reader that meets anything else (evicted, flushed, swapped, half, another's) knows.
Duplicates are harmless, order means nothing. Nothing here trusts what it is given: the keys are the application's.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fsworker.errors import KeepSetError
from fsworker.model import describe, is_hash, shorten

HASH_BYTES = 20
SHARDS = 256
PER_PART = 3276
"""Hashes in a full part: with the server's header just under 64 KiB, a size that its allocator has."""
MAX_PER_PART = (512 << 10) // HASH_BYTES
MAX_PART_BYTES = MAX_PER_PART * HASH_BYTES
MAX_MANIFEST_BYTES = 64 << 10
MAX_HASHES = 2 * 10**9
_BATCH = 4096
_JOIN_AT = 400
_HEX = b"0123456789abcdef"


class BrokenKeepSetError(Exception):
    """What Redis holds is no whole keep-set; the message says what is wrong with it, without naming the application."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Frozen):
    """What a manifest says of one shard: how many hashes, and the digest of their bytes (:func:`new_digest`)."""

    count: Annotated[int, Field(ge=0, le=MAX_HASHES)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", max_length=32)]


class Manifest(_Frozen):
    """The commit of a keep-set. Times are seconds since the epoch by Redis's clock.

    ``snapshot_time`` is when the application began reading its references: what was committed earlier is in the set.
    ``allow_empty`` says that an empty set is meant.
    """

    version: Annotated[int, Field(ge=1, le=1)] = 1  # a Literal would take true for 1
    app: str
    store: Annotated[str, Field(max_length=100)]
    generation: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", max_length=32)]
    snapshot_time: Annotated[float, Field(ge=0, le=10**11, allow_inf_nan=False)]
    published_time: Annotated[float, Field(ge=0, le=10**11, allow_inf_nan=False)]
    count: Annotated[int, Field(ge=0, le=MAX_HASHES)]
    allow_empty: bool = False
    per_part: Annotated[int, Field(ge=1024, le=MAX_PER_PART)] = PER_PART
    shards: Annotated[tuple[Shard, ...], Field(min_length=SHARDS, max_length=SHARDS)]

    def dump(self) -> bytes:
        """The manifest as it lies in Redis."""
        tree = self.model_dump(mode="json")
        tree["shards"] = [[shard["count"], shard["digest"]] for shard in tree["shards"]]
        return json.dumps(tree, separators=(",", ":")).encode()

    def part_sizes(self, shard: int) -> list[int]:
        """Bytes of each part of a shard."""
        full, rest = divmod(self.shards[shard].count, self.per_part)
        return [self.per_part * HASH_BYTES] * full + ([rest * HASH_BYTES] if rest else [])


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises :class:`BrokenKeepSetError` for anything that :meth:`Manifest.dump` does not write."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BrokenKeepSetError(f"its manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        tree = json.loads(data.decode(), parse_constant=_no_constant, object_pairs_hook=_each_key_once)
        if not isinstance(tree, dict):
            raise BrokenKeepSetError("its manifest is not a JSON object")
        tree["shards"] = tuple(Shard(count=count, digest=digest) for count, digest in tree["shards"])
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        raise BrokenKeepSetError(f"its manifest is wrong: {describe(error)}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BrokenKeepSetError(
            f"its manifest is no manifest ({type(error).__name__}: {shorten(str(error))})"
        ) from None
    if manifest.count != sum(shard.count for shard in manifest.shards):
        raise BrokenKeepSetError(
            f"its manifest counts {manifest.count:,} hashes, but its shards {sum(s.count for s in manifest.shards):,}"
        )
    return manifest


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def new_generation() -> str:
    """A name that no other generation has: 128 random bits."""
    return secrets.token_hex(16)


def new_digest() -> hashlib.blake2b:
    """The digest of a shard: BLAKE2b of 16 bytes. It finds damage; nobody is kept from publishing what he likes."""
    return hashlib.blake2b(digest_size=16)


def unpack(part: bytes) -> tuple[bytes, ...]:
    """The hashes of a part, 20 bytes each."""
    return struct.unpack("20s" * (len(part) // HASH_BYTES), part)


def check_parts(manifest: Manifest, shard: int, parts: Iterable[bytes | None]) -> Iterator[bytes]:
    """Pass on the parts of a shard, as Redis gave them; raise :class:`BrokenKeepSetError` for anything unexpected.

    The digest is judged after the last part, so nothing may be acted on before the iterator is exhausted.
    """
    first, digest, where = bytes([shard]), new_digest(), f"shard {shard:02x}"
    for number, (part, size) in enumerate(zip(parts, manifest.part_sizes(shard), strict=True)):
        if part is None:
            raise BrokenKeepSetError(f"part {number} of {where} is missing (evicted, expired or flushed)")
        if len(part) != size:
            raise BrokenKeepSetError(f"part {number} of {where} has {len(part):,} bytes instead of {size:,}")
        if part[::HASH_BYTES] != first * (size // HASH_BYTES):
            raise BrokenKeepSetError(f"part {number} of {where} has hashes of another shard")
        digest.update(part)
        yield part
    if digest.hexdigest() != manifest.shards[shard].digest:
        raise BrokenKeepSetError(f"the digest of {where} does not match")


def mark(names: set[bytes], parts: Iterable[bytes]) -> set[bytes]:
    """Those of ``names`` that are in the keep-set. Memory: one part beside the names, whatever the size of the set."""
    kept: set[bytes] = set()
    for part in parts:
        kept.update(names.intersection(unpack(part)))
    return kept


class Packer:
    """Sorts a stream of hashes into shards, and gives out parts when they are full: at most 20 MB, however many come."""

    def __init__(self) -> None:
        self.count = 0
        self._lists: list[list[bytes]] = [[] for _ in range(SHARDS)]
        self._bytes: list[bytearray] = [bytearray() for _ in range(SHARDS)]
        self._counts = [0] * SHARDS
        self._numbers = [0] * SHARDS
        self._digests = [new_digest() for _ in range(SHARDS)]

    def pack(self, hashes: Iterable[object]) -> Iterator[tuple[int, int, bytes]]:
        """Take hashes in; yield full parts as ``(shard, number, bytes)``.

        Raises :class:`KeepSetError` that names the first of them that is no hash; then this packer is of no more use.
        """
        iterator = iter(hashes)
        add_to = [waiting.append for waiting in self._lists]  # looked up once, not for each hash
        while batch := list(islice(iterator, _BATCH)):
            for name in raw_hashes(batch, self.count):
                add_to[name[0]](name)
            self.count += len(batch)
            for shard, waiting in enumerate(self._lists):
                if len(waiting) >= _JOIN_AT:
                    yield from self._join(shard)

    def finish(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the parts that are not full. :meth:`shards` is right afterwards."""
        for shard in range(SHARDS):
            yield from self._join(shard)
            if self._bytes[shard]:
                yield self._part(shard, len(self._bytes[shard]))

    def shards(self) -> tuple[Shard, ...]:
        """What the manifest has to say of the shards."""
        return tuple(
            Shard(count=count, digest=digest.hexdigest())
            for count, digest in zip(self._counts, self._digests, strict=True)
        )

    def _join(self, shard: int) -> Iterator[tuple[int, int, bytes]]:
        self._bytes[shard] += b"".join(self._lists[shard])
        self._lists[shard].clear()
        while len(self._bytes[shard]) >= PER_PART * HASH_BYTES:
            yield self._part(shard, PER_PART * HASH_BYTES)

    def _part(self, shard: int, size: int) -> tuple[int, int, bytes]:
        part = bytes(self._bytes[shard][:size])
        del self._bytes[shard][:size]
        self._digests[shard].update(part)
        self._counts[shard] += size // HASH_BYTES
        number = self._numbers[shard]
        self._numbers[shard] += 1
        return shard, number, part


def raw_hashes(batch: Sequence[object], before: int = 0) -> Sequence[bytes]:
    """Hashes as 20 bytes each. ``batch`` holds texts of 40 lower-case digits, or 20 bytes.

    Raises :class:`KeepSetError` naming the first offender; ``before`` hashes came earlier. Whole batches of one type
    are judged at once, which makes publishing several times faster.
    """
    kinds = set(map(type, batch))
    if kinds == {str} and set(map(len, batch)) == {40}:  # type: ignore[arg-type]
        text = "".join(batch)  # type: ignore[arg-type]
        if text.isascii() and not text.encode().translate(None, _HEX):
            return unpack(bytes.fromhex(text))
    elif kinds == {bytes} and set(map(len, batch)) == {HASH_BYTES}:  # type: ignore[arg-type]
        return batch  # type: ignore[return-value]
    return [_raw_hash(item, before + number) for number, item in enumerate(batch)]


def _raw_hash(item: object, number: int) -> bytes:
    if isinstance(item, (bytes, bytearray, memoryview)) and len(bytes(item)) == HASH_BYTES:
        return bytes(item)
    if isinstance(item, str) and is_hash(item):
        return bytes.fromhex(item)
    hint = ""
    if item is None or item in ("", "\n"):
        hint = " (leave out rows without a file)"
    elif isinstance(item, (tuple, list, dict)):
        hint = " (give the values themselves: values_list(…, flat=True), or (row[0] for row in cursor))"
    elif isinstance(item, str) and is_hash(item.strip().lower()):
        hint = " (write it in lower case, without white space)"
    raise KeepSetError(
        f"hash number {number + 1:,} is {shorten(item)}: expected 40 lower-case hexadecimal digits or 20 raw bytes{hint}. "
        f"Nothing was published"
    )
