"""The pages under docs/ and the gallery's: their code compiles, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from fsworker.cli import cli
from fsworker.config import Settings

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "gallery" / "README.md"]


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def page(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def test_python_compiles(page: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        compile(code, page.name, "exec")


def test_commands_exist_with_their_options(page: Path) -> None:
    for line in re.findall(r"^\$ fsworker (.*)$", page.read_text(), re.M):
        words = line.split("#")[0].split()
        help_text = CliRunner().invoke(cli, [*(word for word in words[:2] if word.isalpha()), "--help"]).output
        for option in (word for word in words if word.startswith("--")):
            assert option in help_text, f"{line}: no {option}"


def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve()
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_settings_exist(page: Path) -> None:
    named = {name.lower() for name in re.findall(r"\bFSWORKER_([A-Z][A-Z_]*[A-Z])\b", page.read_text())}
    assert named <= set(Settings.model_fields)
