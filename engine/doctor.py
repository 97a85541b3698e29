"""Is this machine fit for training? ``python -m engine.doctor``.

With the options of ``engine.fit``, such as ``--config FILE``, it is also checked for that configuration. The
exit status is 0, or 2 if there is a problem; a note is none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.diagnosis import Finding, check_machine, check_needs, needs_of
from engine.errors import EXIT_STATUS, run_command
from engine.machine import examine_machine

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def print_findings(findings: Iterable[Finding], console: Console | None = None) -> None:
    """Show findings as a list, each remedy below its evidence."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")  # whole file names
    for finding in findings:
        text = Text(finding.evidence)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="cyan")
        table.add_row(Text(finding.severity, style=STYLES[finding.severity]), finding.what, text)
    (console or Console()).print(table)


def main(args: list[str] | None = None) -> None:
    """Examine the machine, and whether it is fit for a configuration if one is given."""
    machine = examine_machine()
    findings = check_machine(machine)
    if args or (args is None and sys.argv[1:]):
        from engine.cli import CommandLine  # seconds to import, and not needed to examine the machine

        findings += check_needs(machine, needs_of(CommandLine(args).config))
    print_findings(findings)
    if any(finding.severity == "problem" for finding in findings):
        sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    run_command(main)
