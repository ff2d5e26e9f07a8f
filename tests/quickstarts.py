"""The quick starts of the README, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
MAX_LINES = 15


def quick_start(name: str) -> str:
    """The code of the quick start of that name."""
    block = re.search(rf"<!-- quick start: {re.escape(name)} -->\n```python\n(.*?)```", README.read_text(), re.S)
    assert block is not None, f"the README has no quick start {name}"
    return block[1]


def assert_short(*names: str) -> None:
    """Fifteen lines at most, blank ones included."""
    assert sum(len(quick_start(name).splitlines()) for name in names) <= MAX_LINES
