"""``fsworker doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from fsworker.cli.common import (
    json_option,
    open_store,
    plain,
    print_json,
    reporting,
    settings_for,
    stdout,
    store_option,
)
from fsworker.doctor import Finding, examine, worst

_SIGNS = {"ok": "[green]ok[/green]", "warning": "[yellow]warning[/yellow]", "problem": "[red]problem[/red]"}


@click.command()
@store_option
@json_option
@reporting
def doctor(store: Path | None, as_json: bool) -> None:
    """Look at everything that fsworker rests on, and say how to mend what is wrong. Changes nothing.

    Run it as the workers' user, with their settings; as Redis's user fsworker-maintenance, or fsworker-admin to have the
    rights of the applications tried as well. Exit code: 0 all well (there may be warnings), 1 problems, 2 configuration.
    """
    settings = settings_for(store)
    with open_store(settings) as handle:
        findings = list(examine(handle, settings))
    level = worst(findings)
    if as_json:
        print_json({"level": level, "findings": [finding.as_json() for finding in findings]})
    else:
        _show(findings, stdout())
    if level == "problem":
        sys.exit(1)


def _show(findings: list[Finding], out: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        fix = f"\n→ {plain(finding.fix)}" if finding.fix else ""
        table.add_row(_SIGNS[finding.level], finding.topic, plain(finding.what) + fix)
    out.print(table)
    counts = {level: sum(finding.level == level for finding in findings) for level in ("problem", "warning")}
    said = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items() if count)
    out.print(f"\n{said or 'All is well'}.")
