"""Writes what docs take from code and measurements: ``python docs/generate.py``. A test holds it up to date.

``configuration.md`` as a whole; in ``migrating.md`` and ``accumulation.md`` what stands between their marks.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from engine.cli import OWN_KEY_INSTEAD, ULTRALYTICS_KEYS, CommandLine
from engine.migrate import LEFT_OUT, RENAMED

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
SECTIONS = {
    "run": "Where a run goes, and when it ends early.",
    "data": "The data set, and how it is cut into windows and varied.",
    "model": "The network and the way it is trained.",
    "memory": "How much VRAM training may use, and what happens at the limit.",
    "trainer": "Lightning's Trainer; these keys matter most, `--help` lists all.",
}
TRAINER_KEYS = (
    "accelerator", "devices", "num_nodes", "max_epochs", "max_time", "log_every_n_steps", "check_val_every_n_epoch",
    "deterministic", "logger", "callbacks", "limit_train_batches", "limit_val_batches",
)  # fmt: skip
HEAD = """# Configuration

Generated from the code by `python docs/generate.py`; do not edit.

Every key can stand in a YAML file (`--config FILE`, several of them: later ones win) or on the command line
(`--data.batch_size 48`). `--print_config` shows what a command line comes to, and every run folder holds the complete
`config.yaml`. `python -m engine.new DATA.yaml` writes a file to begin with.
"""


def pages() -> dict[Path, str]:
    """Every page with something generated, as it should be."""
    migrating, accumulation = DOCS / "migrating.md", DOCS / "accumulation.md"
    return {
        DOCS / "configuration.md": configuration(),
        migrating: _filled(migrating, "keys", _migrated_keys()),
        accumulation: _filled(accumulation, "accumulation", _accumulation_errors()),
    }


def configuration() -> str:
    """The page of all keys."""
    actions = [action for action in CommandLine(["--data.root=any"]).parser._actions if _is_key(action)]
    parts = [HEAD]
    head = ("key", "values", "default", "meaning")
    for section, about in SECTIONS.items():
        rows = [_row(action) for action in actions if action.dest.startswith(f"{section}.")]
        if rows:
            parts.append(f"## {section}\n\n{about}\n\n{_table(head, rows)}")
    parts.append("## Beside these\n\n" + _table(head, [_row(action) for action in actions if "." not in action.dest]))
    refused = [(f"`trainer.{key}`", f"`{instead}`") for key, instead in OWN_KEY_INSTEAD.items()]
    parts.append("## Refused\n\nyolofit does these itself.\n\n" + _table(("key", "use instead"), refused))
    names = [(f"`{theirs}`", f"`{ours}`") for theirs, ours in sorted(ULTRALYTICS_KEYS.items())]
    about = "A mistyped key is answered with the nearest one. These are known; [migrating](migrating.md) has them all."
    parts.append(f"## Names from Ultralytics\n\n{about}\n\n{_table(('theirs', 'ours'), names)}")
    return "\n".join(parts)


def _migrated_keys() -> str:
    known = {action.dest for action in CommandLine(["--data.root=any"]).parser._actions}
    renamed = [(f"`{theirs}`", f"`{ours}`") for theirs, ours in sorted(RENAMED.items()) if ours in known]
    left_out = [(f"`{key}`", reason) for key, (_, reason) in sorted(LEFT_OUT.items())]
    first, second = _table(("theirs", "ours"), renamed), _table(("theirs", "why it becomes nothing"), left_out)
    return f"Only the name changes:\n\n{first}\n{second}"


def _accumulation_errors() -> str:
    newest = max(RESULTS.glob("accumulation_cpu_*.json"))
    cells = [
        (f"{data}, {row['accumulate']} x {row['micro_batch']}", f"{row['ultralytics']:.1%}", f"{row['yolofit']:.0e}")
        for data, found in json.loads(newest.read_text(encoding="utf-8"))["data"].items()
        for row in found["rows"]
    ]
    return _table(("pictures, micro-batches", "Ultralytics", "yolofit"), cells)


def _filled(path: Path, mark: str, content: str) -> str:
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
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
    """What may be given, in a few words."""
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
