"""Signatures of file URLs: only what this project has handed out is served, under the name it was handed out with.

A hash is no secret: whoever has a file knows its hash, and several applications share a store. So a URL with nothing but
a hash would let every visitor ask for any application's files.
"""

from __future__ import annotations

from django.core.signing import BadSignature, Signer

from fsworker.model import Hash

_SALT = "fsworker.contrib.django.file"


def sign(name: Hash, filename: str) -> str:
    """The signature of a file and its name, by ``SECRET_KEY``."""
    return str(Signer(salt=_SALT).signature(f"{name}/{filename}"))


def is_signed(name: str, filename: str, signature: str) -> bool:
    """Whether :func:`sign` has made this signature, with this key or one of ``SECRET_KEY_FALLBACKS``."""
    signer = Signer(salt=_SALT)
    try:
        signer.unsign(f"{name}/{filename}{signer.sep}{signature}")
    except BadSignature:
        return False
    return True
