"""Prints findings in the colors of their severity."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.machine.diagnosis import Finding

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def print_findings(findings: Iterable[Finding], console: Console | None = None) -> None:
    """Print findings as a list, each remedy below its evidence."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")  # never shorten file names
    for finding in findings:
        text = Text(finding.evidence)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="cyan")
        table.add_row(Text(finding.severity, style=STYLES[finding.severity]), finding.what, text)
    (console or Console()).print(table)
