"""What many tests of stores need."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fsworker.model import Hash
from fsworker.store.objects import ObjectStore

CORPUS = Path(__file__).parents[2] / "shared/corpus"


def sha1(data: bytes) -> Hash:
    return Hash(hashlib.sha1(data).hexdigest())


def spoil(store: ObjectStore, name: Hash, content: bytes) -> None:
    """Rot: other bytes under the same name, in the same file."""
    path = store.location(name)
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


def reasons(store: ObjectStore) -> list[dict[str, object]]:
    """What the entries of ``Error/`` give as their reasons."""
    return [json.loads(path.read_bytes()) for path in sorted(store.root.glob("Error/*/Reason.json"))]


def kept(store: ObjectStore) -> list[bytes]:
    """The bytes kept in ``Error/``."""
    return [p.read_bytes() for p in sorted(store.root.glob("Error/*/*")) if p.name != "Reason.json"]


def assert_verifies(store: ObjectStore) -> None:
    """Every stored file is what its name says."""
    for name in store:
        assert sha1(store.location(name).read_bytes()) == name
