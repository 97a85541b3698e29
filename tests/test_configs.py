"""Every configuration file parses, with no key that nobody reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from engine.command_line.cli import CommandLine
from engine.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def leaves(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in tree.items():
        rows += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config__every_key_arrives(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    root = [] if "root" in content["data"] else ["--data.root=data.yaml"]
    parsed = CommandLine([f"--config={path}", *root]).config
    for key, value in leaves(content):
        assert parsed[key] == value or str(parsed[key]) == str(value), key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config__rejects_an_extra_key(path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    content.setdefault("data", {})["imagesize"] = 640
    changed = tmp_path / path.name
    changed.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"data\.imagesize.*did you mean data\.image_size"):
        CommandLine([f"--config={changed}"])


def test_configs__there_are_the_documented_ones() -> None:
    assert {path.name for path in CONFIGS} >= {"quickstart.yaml", "component.yaml", "solder.yaml", "parity.yaml"}
