"""Write docs/benchmarks.md and its plots from benchmarks/results/*.json: `python benchmarks/report.py`.

Each section is a function in `report_sections.py`. A test holds the page up to date.
"""

from __future__ import annotations

import matplotlib
import report_sections
from report_parts import ROOT, Report, table

PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
HEAD = """# Benchmarks

Generated from `benchmarks/results/` by `python benchmarks/report.py`; do not edit. Every figure comes from a file in
that folder. The file also has the hardware, the versions and the command. yolofit and Ultralytics run in one process,
in turns. Figures are medians. The brackets have the first and the third quartile, unless a column says otherwise.
"""


def page(report: Report) -> str:
    """The whole page; afterwards ``report`` holds the plots."""
    sections = {title: section(report) for title, section in report_sections.SECTIONS.items()}
    others = [f"- {result.source()}" for result in report.results() if result.path not in report.used]
    sections["Other results"] = "\n".join(others)
    targets = table(("", "target", "measured", ""), sorted(report.targets, key=lambda row: int(row[0])), num_text=4)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{HEAD}\n## Targets\n\n{targets}\n\n{body}\n"


def main() -> None:
    report = Report()
    PAGE.write_text(page(report), encoding="utf-8")
    PLOTS.mkdir(exist_ok=True)
    for old in PLOTS.glob("*.svg"):
        old.unlink()
    # Same results, same files: no date, no random names.
    with matplotlib.rc_context({"svg.hashsalt": "yolofit", "svg.fonttype": "none"}):
        for name, figure in report.plots.items():
            figure.savefig(PLOTS / name, metadata={"Date": None})
    print(f"written: {PAGE.relative_to(ROOT)}, {len(report.plots)} plots")


if __name__ == "__main__":
    main()
