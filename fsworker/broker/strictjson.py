"""JSON that every parser reads in the same way, and that no text makes expensive. Pure.

Refused is what two parsers may read in two ways: a key twice, NaN, infinities, lone surrogates; and objects with the key
``__type__``, which kombu turns into other Python types after the arguments were validated. Numbers and depth are bounded.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

_MAX_NUMBER_CHARS: Final = 24
# Strings are skipped whole, and possessively: an unterminated string costs one pass, not one for each quote in it.
_STRINGS_AND_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.?)*+"?|[\[\]{}]', re.DOTALL)


class TooDeepError(ValueError):
    """Nested deeper than allowed. Said before anything is parsed."""


def parse(raw: bytes, max_depth: int) -> Any:
    """The value of strict JSON in UTF-8.

    Raises :class:`TooDeepError` for more than ``max_depth`` levels, ``ValueError`` for all else that it is not.
    """
    text = raw.decode("utf-8")
    if _is_too_deep(text, max_depth):
        raise TooDeepError(f"nested more than {max_depth} levels deep")
    value = json.loads(
        text, object_pairs_hook=_pairs, parse_int=_integer, parse_float=_number, parse_constant=_constant
    )
    if "\\u" in text:  # only an escape can stand for a lone surrogate, which no UTF-8 can
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _is_too_deep(text: str, max_depth: int) -> bool:
    depth = 0
    for token in _STRINGS_AND_BRACKETS.finditer(text):
        character = token.group()[0]
        if character in "[{":
            depth += 1
            if depth > max_depth:
                return True
        elif character in "]}":
            depth -= 1
    return False


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    if "__type__" in found:
        raise ValueError("an object has the key __type__; send plain strings and numbers")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_NUMBER_CHARS:
        raise ValueError("a number is too long")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
