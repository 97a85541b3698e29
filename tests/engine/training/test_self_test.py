"""A network that does not train at a recompute level as at `none` is noticed, its layer named, and help found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.command_line.cli import CommandLine
from engine.doctor import check_levels
from engine.errors import ConfigError
from engine.fit import main as fit
from engine.training import self_test as tested
from engine.training.self_test import check_recompute, self_test
from models import cache_folder
from models.architecture import read_architecture
from models.network import build_network
from models.recompute import recipes
from models.recompute.levels import apply_recompute
from tests.helpers.own_architectures import OWN

CPU = torch.device("cpu")
SMALL = str(OWN["one-class"])


def broken_in(*broken_layers: int, harm: Callable[[nn.Module, Tensor], object], level: str = "block") -> Callable:
    """`apply_recompute`, with layers to which something happens at ``level``."""

    def apply(network: Any, base: str, per_layer: Mapping[int, str], fused_kernels: bool) -> None:
        apply_recompute(network, base, per_layer, fused_kernels)
        for index in broken_layers:
            layer = network.model[index]
            if per_layer.get(index, base) == level:
                layer.forward = lambda x, layer=layer, forward=layer.forward: harmed(layer, forward(x))

    def harmed(layer: nn.Module, out: Tensor) -> Tensor:
        harm(layer, out)
        return out

    return apply


def wrong_gradient(_: nn.Module, out: Tensor) -> None:
    out.register_hook(lambda grad: 1.001 * grad)


def statistics_again(layer: nn.Module, out: Tensor) -> None:
    """As if a repeated pass moved them a second time."""
    norm = next(module for module in layer.modules() if isinstance(module, nn.BatchNorm2d))

    def again(grad: Tensor) -> None:
        norm.running_mean.mul_(2)

    out.register_hook(again)


def failure(*_: object) -> None:
    raise RuntimeError("takes\nno tuples. More of this")


@pytest.mark.parametrize("level", ["elementwise", "block"])
def test_self_test__passes_and_changes_nothing_outside(level: str) -> None:
    network = build_network(SMALL, 3)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert self_test(network, level) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (wrong_gradient, r"the gradient of model\.\d+\.\S+ differs by 1e-03 of its size"),
        (statistics_again, r"model\.4\.\S+\.running_mean differs by 100%"),
        (failure, r"RuntimeError: takes no tuples"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_self_test__names_the_layer_and_what_to_set(harm: Callable, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "apply_recompute", broken_in(4, harm=harm))
    remedy = r"Set model\.recompute: block, model\.recompute_layers: \{4: none\} and data\.micro_batch_size: a number"
    found = str(self_test(build_network(SMALL, 3), "block"))
    assert re.fullmatch(rf"layer 4 \(C3k2\) does not train as at none: {what}\. {remedy}", found), found


def test_self_test__names_the_first_of_many_layers_and_a_level_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(SMALL, 3)
    for level, remedy in (("block", "elementwise"), ("elementwise", "none")):
        monkeypatch.setattr(tested, "apply_recompute", broken_in(1, 2, 4, 6, harm=wrong_gradient, level=level))
        found = self_test(network, level)
        assert (found.where, found.remedy) == ("layer 1 (Conv)", f"Set model.recompute: {remedy}")


def test_self_test__takes_levels_of_single_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(SMALL, 3)
    monkeypatch.setattr(tested, "apply_recompute", broken_in(4, harm=wrong_gradient))
    assert self_test(network, "elementwise", {2: "block"}) is None
    assert self_test(network, "block", {4: "none"}) is None
    assert self_test(network, "elementwise", {4: "block"}).where == "layer 4 (C3k2)"


def test_self_test__notices_a_wrong_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = recipes.unpack

    def wrong(packed: Tensor | recipes.Recipe) -> Tensor:
        return unpack(packed) * (1.001 if isinstance(packed, recipes.Recipe) else 1)

    network = build_network(SMALL, 3)
    assert self_test(network, "elementwise") is None
    monkeypatch.setattr(recipes, "unpack", wrong)
    found = self_test(network, "elementwise")
    assert found.where == "layer 2 (C3k2)" and "gradient" in found.what  # two single units come before


class OtherEachTime(nn.Module):
    """Dropout whose random numbers nobody puts back."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        generator = torch.Generator().manual_seed(self.count)
        return x * (torch.rand(x.shape, generator=generator) < 0.8)


def test_self_test__notices_random_numbers_drawn_again() -> None:
    network = build_network(SMALL, 3)
    network.model[4].m[0].cv2 = nn.Sequential(network.model[4].m[0].cv2, OtherEachTime())
    assert self_test(network, "elementwise") is None
    found = self_test(network, "block")
    assert found.where == "layer 4 (C3k2)" and found.what.startswith("the gradient of model.")


def test_self_test__says_that_the_network_itself_fails() -> None:
    network = build_network(SMALL, 3)
    network.model[4].cv2.conv = nn.Conv2d(7, 64, 1)
    found = self_test(network, "block")
    assert found.where == "the network"
    assert "a training step on 2 images fails even at recompute none (ArchitectureError" in found.what


def check(network: str, level: str, per_layer: Mapping[int, str] | None) -> None:
    check_recompute(network, read_architecture(network), level, per_layer, False, CPU)


class TestCheckRecompute:
    def test_named_networks__are_held_by_tests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tested, "self_test", failure)
        check("yolo12n", "block", None)
        check_recompute("missing.yaml", {}, "none", {}, False, CPU)  # at which there is nothing to compare

    def test_result__is_kept_for_architecture_levels_and_code(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = []
        monkeypatch.setenv("YOLOFIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(tested, "self_test", lambda *args: runs.append(args[1:3]))
        text = Path(SMALL).read_text()
        (tmp_path / "same.yaml").write_text(f"nc: 7\n{text}")
        (tmp_path / "other.yaml").write_text(text.replace("[64, 5]", "[64, 3]"))
        for network in (SMALL, SMALL, str(tmp_path / "same.yaml")):
            check(network, "block", None)
        assert len(runs) == 1
        check(str(tmp_path / "other.yaml"), "block", None)
        check(SMALL, "block", {1: "none"})
        check(SMALL, "elementwise", None)
        monkeypatch.setattr(torch, "__version__", "0.1")
        check(SMALL, "block", None)
        assert len(runs) == 5

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"passed": false}'])
    def test_result__that_is_damaged_is_made_again(
        self, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = []
        monkeypatch.setenv("YOLOFIT_CACHE", str(tmp_path))
        monkeypatch.setattr(tested, "self_test", lambda *args: runs.append(args))
        check(SMALL, "block", None)
        (note,) = (cache_folder() / "self-test").iterdir()
        note.write_text(content)
        check(SMALL, "block", None)
        check(SMALL, "block", None)
        assert len(runs) == 2

    def test_cache__that_cannot_be_written_is_done_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("YOLOFIT_CACHE", str(tmp_path / "file"))
        check(SMALL, "elementwise", None)

    def test_difference__ends_the_run_before_anything_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("YOLOFIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(tested, "apply_recompute", broken_in(2, harm=wrong_gradient))
        options = ["--config=configs/quickstart.yaml", f"--model.network={SMALL}", f"--run.folder={tmp_path / 'run'}"]
        message = (
            rf"^model\.recompute: block: {SMALL}: layer 2 \(C3k2\) does not train as at none: .* Set model\.recomp"
        )
        with pytest.raises(ConfigError, match=message):
            fit([*options, "--model.recompute=block"])
        assert not (tmp_path / "run").exists() and not list(tmp_path.glob("cache/self-test/*"))
        finding = check_levels(CommandLine([*options, "--model.recompute=auto"]).config, read_architecture(SMALL))
        assert finding.severity == "problem" and finding.remedy.startswith("Set model.recompute: block, model.recomp")
