"""Write the generated parts of README and docs: ``python docs/generate.py``. A test checks that they are up to date.

The generated parts are ``configuration.md``, the tables between marks (``<!-- name -->``), and the numbers in sentences
that `figures.CLAIMS` lists.
"""

from __future__ import annotations

import json
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from engine.command_line.cli import CommandLine
from engine.command_line.explain import ULTRALYTICS_KEYS
from engine.command_line.trainer_keys import OWN_KEY_INSTEAD
from engine.migration.translate import GROUPS, LEFT_OUT, NO_EFFECT, RENAMED

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
import figures  # noqa: E402  beside this file

RESULTS = DOCS.parent / "benchmarks" / "results"
SECTIONS = {
    "run": "The run folder, and when a run ends early.",
    "data": "The data set, the windows and the augmentation.",
    "model": "The network and its training.",
    "memory": "The VRAM that training may use, and what happens at the limit.",
    "trainer": "Lightning's Trainer. The table has the keys that matter most; `--help` lists all.",
}
TRAINER_KEYS = (
    "accelerator", "devices", "num_nodes", "max_epochs", "max_time", "log_every_n_steps", "check_val_every_n_epoch",
    "deterministic", "logger", "callbacks", "limit_train_batches", "limit_val_batches",
)  # fmt: skip
HEAD = """# Configuration

Generated from the code by `python docs/generate.py`; do not edit.

You can set every key in a YAML file (`--config FILE`) or on the command line (`--data.batch_size 48`). If you give
several files, later ones win. `--print_config` prints the resulting configuration. Every run folder contains the
complete `config.yaml`. `python -m engine.new DATA.yaml` writes a first file.
"""


TABLES = {
    "README.md": {"plan": figures.short_plan_table},
    "docs/memory.md": {
        "breakdown": figures.breakdown_table,
        "plan": figures.plan_table,
        "budgets": figures.budget_table,
    },
    "docs/data-loading.md": {"loader": figures.loader_table},
    "docs/accumulation.md": {"exactness": figures.exactness_table, "batchnorm": figures.batchnorm_table},
    "docs/distributed.md": {"scaling": figures.scaling_table},
    "docs/fidelity.md": {
        "fidelity": figures.fidelity_table,
        "exchanges": figures.exchange_table,
        "partners": figures.partners_table,
        "crossed": figures.crossed_table,
        "chance": figures.chance_table,
    },
    "docs/speed.md": {"compile": figures.compile_table},
    "docs/recompute.md": {"layers": figures.layers_table},
}
"""A function for each table, by page and mark; it returns the rows, the head first."""


def pages() -> dict[Path, str]:
    """The text of every page that has generated parts."""
    root = DOCS.parent
    texts = {root / page: _read(root / page) for page in {*TABLES, *(claim.page for claim in figures.CLAIMS)}}
    for page, tables in TABLES.items():
        for mark, rows in tables.items():
            head, *body = rows()
            texts[root / page] = _filled(texts[root / page], mark, _table(head, body))
    migrating, accumulation = DOCS / "migrating.md", DOCS / "accumulation.md"
    texts[migrating] = _filled(texts.get(migrating, _read(migrating)), "keys", _migrated_keys())
    texts[accumulation] = _filled(texts[accumulation], "accumulation", _accumulation_errors())
    texts = {path: figures.written(text, figures.of_page(path)) for path, text in texts.items()}
    return {DOCS / "configuration.md": configuration(), **texts}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def configuration() -> str:
    """The page of all keys."""
    actions = [action for action in CommandLine(["--data.root=any"]).parser._actions if _is_key(action)]
    parts = [HEAD]
    head = ("key", "values", "default", "meaning")
    for section, about in SECTIONS.items():
        rows = [_row(action) for action in actions if action.dest.startswith(f"{section}.")]
        if rows:
            parts.append(f"## {section}\n\n{about}\n\n{_table(head, rows)}")
    parts.append("## Other options\n\n" + _table(head, [_row(action) for action in actions if "." not in action.dest]))
    refused = [(f"`trainer.{key}`", f"`{instead}`") for key, instead in OWN_KEY_INSTEAD.items()]
    about = "yolofit does itself what these keys of the Trainer do."
    parts.append(f"## Refused\n\n{about}\n\n{_table(('key', 'use instead'), refused)}")
    names = [(f"`{theirs}`", f"`{ours}`") for theirs, ours in sorted(ULTRALYTICS_KEYS.items())]
    about = "The message about a mistyped key names the nearest key. [Migrating](migrating.md) lists all of them."
    parts.append(f"## Names from Ultralytics\n\n{about}\n\n{_table(('Ultralytics', 'yolofit'), names)}")
    return "\n".join(parts)


def _migrated_keys() -> str:
    known = {action.dest for action in CommandLine(["--data.root=any"]).parser._actions}
    renamed = [(f"`{theirs}`", f"`{ours}`") for theirs, (ours, _) in sorted(RENAMED.items()) if ours in known]
    left_out = [(f"`{key}`", reason) for key, (_, reason) in sorted(LEFT_OUT.items())]
    first = _table(("Ultralytics", "yolofit"), renamed)
    second = _table(("Ultralytics", "why it becomes nothing"), left_out)
    grouped = ", ".join(f"`{key}`" for key in sorted(key for keys in GROUPS for key in keys))
    others = ", ".join(f"`{key}`" for key in sorted(NO_EFFECT))
    return (
        f"Only the name of these keys changes:\n\n{first}\n{second}\n"
        f"Translated together with their value, as in the first table of this page: {grouped}.\n\n"
        f"Without effect on the training of a detector: {others}.\n"
    )


def _accumulation_errors() -> str:
    newest = max(RESULTS.glob("accumulation_cpu_*.json"))
    cells = [
        (f"{data}, {row['accumulate']} x {row['micro_batch']}", f"{row['ultralytics']:.1%}", f"{row['yolofit']:.0e}")
        for data, found in json.loads(newest.read_text(encoding="utf-8"))["data"].items()
        for row in found["rows"]
    ]
    return _table(("images, micro-batches", "Ultralytics", "yolofit"), cells)


def _filled(page: str, mark: str, content: str) -> str:
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{begin} ... {end}: no such marks")
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _is_key(action: Any) -> bool:
    name = action.dest
    if type(action).__name__ != "ActionTypeHint":
        return False
    return not name.startswith("trainer.") or name.removeprefix("trainer.") in TRAINER_KEYS


def _row(action: Any) -> tuple[str, ...]:
    section = action.dest.partition(".")[0]
    text = action.help or ""
    if section == "trainer":  # Lightning's texts are long: their first sentence
        text = re.split(r"(?<=[.])\s|\n", text)[0]
    text = " ".join(text.replace("``", "`").split()).replace("|", "\\|")
    default = str(action.default).lower() if isinstance(action.default, bool) else action.default
    shown = "" if default is None or "SUPPRESS" in str(default) else _code(default)
    return f"`{action.dest}`", _values(action._typehint), shown, text


def _values(hint: Any) -> str:
    """The allowed values, in a few words."""
    if typing.get_origin(hint) is Literal:
        return ", ".join(_code(value) for value in typing.get_args(hint))
    arguments = [item for item in typing.get_args(hint) if item is not type(None)]
    if typing.get_origin(hint) in (list, dict):
        return "list" if typing.get_origin(hint) is list else "map"
    if arguments:
        words = {_values(item) for item in arguments}
        return " or ".join(sorted(words, key=lambda text: (-len(text), text)))  # Python does not keep a union's order
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _code(value: Any) -> str:
    return f"`{value}`"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"written: {path.relative_to(DOCS.parent)}")
