"""The form of a keep-set: packing, manifests, marking."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsworker.errors import KeepSetError
from fsworker.keepsets import form as keepsets
from fsworker.keepsets.form import HASH_BYTES, PER_PART, SHARDS, BrokenKeepSetError, Manifest, Packer, Shard

Parts = dict[tuple[int, int], bytes]

raw = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)
few_shards = st.builds(
    lambda first, rest: bytes([first]) + rest, st.integers(0, 3), st.binary(min_size=19, max_size=19)
)


def packed(hashes: Iterable[object]) -> tuple[Manifest, Parts]:
    packer = Packer()
    parts = {(shard, number): part for shard, number, part in packer.pack(hashes)}
    parts |= {(shard, number): part for shard, number, part in packer.finish()}
    manifest = Manifest(
        app="shop",
        store="s",
        generation=keepsets.new_generation(),
        snapshot_time=1.0,
        published_time=2.0,
        count=packer.count,
        shards=packer.shards(),
    )
    return manifest, parts


def shard_parts(parts: Parts, manifest: Manifest, shard: int) -> list[bytes | None]:
    return [parts.get((shard, number)) for number in range(len(manifest.part_sizes(shard)))]


def read(manifest: Manifest, parts: Parts, shard: int) -> bytes:
    return b"".join(keepsets.check_parts(manifest, shard, shard_parts(parts, manifest, shard)))


def many(count: int, shard: int | None = None) -> list[bytes]:
    source = random.Random(count)
    return [
        (b"" if shard is None else bytes([shard])) + source.randbytes(20 if shard is None else 19) for _ in range(count)
    ]


@given(st.lists(raw | raw.map(bytes.hex)))
def test_what_was_packed_is_read_again(hashes: list[bytes | str]) -> None:
    manifest, parts = packed(hashes)
    expected = sorted(bytes.fromhex(h) if isinstance(h, str) else h for h in hashes)
    found = [name for shard in range(SHARDS) for name in keepsets.unpack(read(manifest, parts, shard))]
    assert sorted(found) == expected
    assert manifest.count == len(hashes)


@given(st.lists(few_shards), st.lists(few_shards))
def test_marking_is_intersection(kept: list[bytes], names: list[bytes]) -> None:
    manifest, parts = packed(kept)
    for shard in range(4):
        mine = {name for name in names if name[0] == shard}
        assert keepsets.mark(mine, [read(manifest, parts, shard)]) == mine & set(kept)


def test_a_large_shard_comes_in_full_parts_and_a_rest() -> None:
    hashes = many(2 * PER_PART + 5, shard=7)
    manifest, parts = packed(hashes)
    assert sorted(parts) == [(7, 0), (7, 1), (7, 2)]
    assert [len(part) for part in parts.values()] == manifest.part_sizes(7) == [PER_PART * 20, PER_PART * 20, 100]
    assert read(manifest, parts, 7) == b"".join(hashes)


def test_an_exactly_full_part_has_no_rest() -> None:
    manifest, parts = packed(many(PER_PART, shard=255))
    assert sorted(parts) == [(255, 0)]
    assert manifest.part_sizes(255) == [PER_PART * 20]


def test_a_million_hashes_are_packed_in_little_memory() -> None:
    packer = Packer()
    block = many(1000)
    for _ in packer.pack(name for _ in range(1000) for name in block):
        waiting = sum(map(len, packer._bytes)) + 61 * sum(map(len, packer._lists))
        assert waiting < 25 << 20
    assert packer.count == 1_000_000


def test_duplicates_are_counted_and_do_no_harm() -> None:
    name = os.urandom(20)
    manifest, parts = packed([name] * 3)
    assert manifest.count == 3
    assert keepsets.mark({name}, [read(manifest, parts, name[0])]) == {name}


GOOD = "da39a3ee5e6b4b0d3255bfef95601890afd80709"


@pytest.mark.parametrize(
    "bad",
    [
        GOOD.upper(),
        GOOD[:39] + "A",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        GOOD[:-1] + "\n",
        " " + GOOD[:-1],
        GOOD[:38] + "  ",
        GOOD[:-1] + "g",
        GOOD[:-1] + "é",
        GOOD[:-1] + "\u0660",  # an Arabic digit
        "0x" + GOOD[2:],
        "",
        None,
        (GOOD,),
        [GOOD],
        {"hash": GOOD},
        GOOD.encode(),
        b"",
        bytes(19),
        bytes(21),
        0,
        1.5,
        float("nan"),
        True,
    ],
    ids=repr,
)
@pytest.mark.parametrize("position", [0, 1, 4095, 4096, 9000])
def test_the_first_malformed_hash_is_named(bad: object, position: int) -> None:
    hashes = [*many(position), bad, *many(10), "worse"]
    texts: list[object] = [
        h.hex() if isinstance(h, bytes) and len(h) == 20 and isinstance(bad, str) else h for h in hashes
    ]
    with pytest.raises(KeepSetError, match=f"^hash number {position + 1:,} is .*Nothing was published"):
        list(Packer().pack(texts))


@given(st.lists(st.text(alphabet="0123456789abcdefABCDEF \n\x00é", min_size=39, max_size=41), max_size=5))
def test_batches_are_judged_as_single_hashes_are(texts: list[str]) -> None:
    good = all(keepsets.is_hash(text) for text in texts)
    try:
        assert list(keepsets.raw_hashes(texts)) == [bytes.fromhex(text) for text in texts]
        assert good
    except KeepSetError:
        assert not good


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_raw_hashes_come_as_any_bytes(kind: type) -> None:
    name = os.urandom(20)
    assert list(keepsets.raw_hashes([kind(name), name.hex()])) == [name, name]


def test_a_manifest_survives_its_journey() -> None:
    manifest, _ = packed(many(5000))
    assert keepsets.parse_manifest(manifest.dump()) == manifest
    assert len(manifest.dump()) < keepsets.MAX_MANIFEST_BYTES / 4


def test_the_largest_manifest_fits() -> None:
    shard = Shard(count=keepsets.MAX_HASHES // SHARDS, digest="0" * 32)
    manifest, _ = packed([])
    large = manifest.model_copy(update={"shards": (shard,) * SHARDS, "count": shard.count * SHARDS, "app": "a" * 32})
    assert keepsets.parse_manifest(large.dump()) == large


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda parts: parts.pop((7, 1)), "part 1 of shard 07 is missing"),
        (lambda parts: parts.update({(7, 1): parts[7, 1][:-1]}), "has 99 bytes instead of 100"),
        (lambda parts: parts.update({(7, 1): parts[7, 1] + bytes(20)}), "has 120 bytes instead of 100"),
        (lambda parts: parts.update({(7, 0): parts[7, 1]}), "part 0 of shard 07 has 100 bytes"),
        (lambda parts: parts.update({(7, 1): b"\x08" + parts[7, 1][1:]}), "hashes of another shard"),
        (lambda parts: parts.update({(7, 1): b"\x07" * 100}), "digest of shard 07 does not match"),
        (lambda parts: parts.update({(7, 1): parts[7, 1][20:] + parts[7, 1][:20]}), "digest of shard 07"),
    ],
)
def test_a_damaged_shard_is_told(damage: object, what: str) -> None:
    manifest, parts = packed(many(PER_PART + 5, shard=7))
    damage(parts)  # type: ignore[operator]
    with pytest.raises(BrokenKeepSetError, match=what):
        read(manifest, parts, 7)
