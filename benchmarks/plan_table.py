"""The default table of ``python -m engine.plan``: memory of every combination by component, and the time to plan.

python benchmarks/plan_table.py --out benchmarks/results/plan_meta.json
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from common import write

from engine.memory.units import GIB
from engine.planning.choose import MARGIN_SHARE, MICRO_BATCH_COST
from engine.planning.predict import recommend
from engine.planning.question import as_json, default_question

BUDGETS_GIB = (24, 16, 12, 8, 6, 4, 3, 2)


def main() -> None:
    """Plan and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    start_seconds, start_cpu_seconds = time.perf_counter(), time.process_time()
    question = default_question()
    plan = as_json(question)
    about = {
        "margin_share": MARGIN_SHARE,
        "micro_batch_cost_images": MICRO_BATCH_COST,
        "table_seconds": round(time.perf_counter() - start_seconds, 1),
        "table_cpu_seconds": round(time.process_time() - start_cpu_seconds, 1),
    }
    by_budget = []
    for image_size in question.image_sizes:
        for budget_gib in BUDGETS_GIB:
            spec = replace(question.spec, image_size=image_size)
            found = recommend(spec, budget_gib * GIB, question.batch_size)
            entry = {"budget_gib": budget_gib, "image_size": image_size, "extra_time": round(found.extra_time, 3)}
            for key in ("micro_batch", "accumulate", "recompute", "recompute_layers", "peak_bytes"):
                entry[key] = getattr(found, key)
            by_budget.append(entry)
            print(entry)
    what = "yolo11l, 25 classes, 50 boxes an image, AdamW; effective batch 32; simulated on the meta device"
    write(out, what, about | plan | {"recommended_by_budget": by_budget}, quiet=True)


if __name__ == "__main__":
    main()
