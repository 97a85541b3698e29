"""What the benchmark programs compute from what they measure."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import accumulation
import autobatch
import box_precision
import common
import fidelity
import fidelity_arms
import fidelity_exchanges
import fidelity_run
import fidelity_statistics
import gpu_caps
import gpu_steps
import growth
import pytest
import roofline
import torch
from torch.autograd import DeviceType

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from engine.training.step import TrainingStep
from models.weights.saved_weights import read_weights


def test_fit__finds_line_and_exponent() -> None:
    assert growth.fit([1, 2, 4], [5, 7, 11]) == pytest.approx({"fixed": 3, "per_unit": 2, "exponent": 0.57}, abs=0.01)
    assert growth.fit([1, 2, 4], [3, 12, 48])["exponent"] == pytest.approx(2)


def test_compare__pairs_rounds() -> None:
    result = common.compare({"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0]}, "a")
    assert result["median_seconds"] == {"a": 2.0, "b": 4.0}
    assert result["median_ratio_to_a"] == {"a": 1.0, "b": 2.0}
    assert result["quartile_ratio_to_a"]["b"] == [2.0, 2.0] and result["quartile_seconds"]["a"] == [1.5, 3.0]


@pytest.mark.parametrize("answer", [0, 1, 7, 30, 64])
@pytest.mark.parametrize("guess", [0, 1, 8, 29, 64, 100])
def test_largest__is_found_from_any_guess(answer: int, guess: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= answer

    assert gpu_caps.largest(fits, guess, most=64) == answer
    assert len(tried) == len(set(tried)) <= 13 and min(tried) >= 1 and max(tried) <= 64
    assert answer in (0, *tried) and min(answer + 1, 64) in tried


def test_expected_bytes__are_those_of_autobatch_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autobatch, "check_train_batch_size", autobatch.pretended_choice)
    monkeypatch.setattr(autobatch, "fresh_network", lambda: None)
    batch, messages = autobatch.chosen_batch(0.6)
    assert batch == 2 and autobatch.expected_bytes(messages) == round(4.71 * 2**30)
    assert autobatch.expected_bytes(["error detected"]) is None


@pytest.mark.parametrize("rival", ["none", "block"])
def test_trials__of_ours_end_where_memory_runs_out(rival: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(self: TrainingStep, *_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(gpu_steps, "NETWORK", "yolo11n")
    window = common.random_window(1, 64)
    assert gpu_caps._take_steps(rival, window) is None
    monkeypatch.setattr(TrainingStep, "_forward_backward", run_out)
    error = gpu_caps._take_steps(rival, window)
    assert error is not None and "out of memory" in error and "another error" not in error


def test_split_kernels__counts_each_kernel_once() -> None:
    def event(key: str, where: DeviceType, microseconds: float, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, device_type=where, self_device_time_total=microseconds, is_user_annotation=annotation
        )

    events = [
        event("aten::cudnn_convolution", DeviceType.CPU, 40.0), event("sm90_xmma_fprop", DeviceType.CUDA, 40.0),
        event("BatchNormAct", DeviceType.CPU, 10.0), event("_apply_kernel", DeviceType.CUDA, 10.0),
        event("aten::silu", DeviceType.CPU, 5.0), event("vectorized_kernel", DeviceType.CUDA, 12.0),
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, 99.0, annotation=True),
    ]  # fmt: skip
    expected = {"all": 62e-6, roofline.CONVOLUTIONS: 40e-6, roofline.NORM_ACT: 15e-6}
    assert roofline.split_kernels(events) == pytest.approx(expected)


def test_command__tells_no_paths_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/x/benchmarks/loader.py", "--out", "/a/b.json", "--data", "/c/d/data.yaml"])
    assert common._command() == "python benchmarks/loader.py --data PATH/TO/d/data.yaml"


def test_cpu_peak_bytes__counts_what_is_held_and_what_comes_and_goes() -> None:
    held = torch.zeros(1024)
    peak = common.cpu_peak_bytes(lambda: (torch.zeros(2048) + torch.zeros(2048)).sum(), [held])
    assert peak == pytest.approx(4 * (1024 + 3 * 2048), abs=1024)


def test_box_losses__are_nothing_in_fp32_and_far_apart_in_bf16() -> None:
    exact, rounded = (box_precision.box_losses(640, precision, seed=0) for precision in ("fp32", "bf16"))
    assert max(exact.values()) < 1e-5  # fp32 rounds coordinates of some hundred pixels
    assert rounded["yolofit"] < 1e-3 < rounded["ultralytics"]


def test_gradients__of_whole_windows_are_those_of_ultralytics() -> None:
    config = SyntheticConfig(num_train=accumulation.NUM_IMAGES, num_val=1, image_size=96)
    windows = accumulation.make_windows(read_dataset_yaml(generate_pcb_dataset(Path("boards"), config)), 96, 1)
    network = accumulation.make_network(windows, 25, num_steps=1)
    theirs = accumulation.ultralytics_gradient(network, windows[0], 16)
    assert accumulation.relative_error(accumulation.yolofit_gradient(network, windows[0], 16), theirs) < 1e-3


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_summarize__pairs_runs_by_seed() -> None:
    runs = [run("yolofit", 0, 0.5), run("ultralytics", 0, 0.4), run("yolofit", 1, 0.3), run("ultralytics", 1, 0.4)]
    summary = fidelity_statistics.summarize([*runs, run("yolofit", 2, 0.9)], fidelity_arms.PAIRS)
    found = summary["boards, last, validated by yolofit"]
    assert list(found["gaps"]) == ["yolofit less ultralytics"]
    gap = found["gaps"]["yolofit less ultralytics"]
    assert gap["values"] == pytest.approx([0.1, -0.1]) and gap["beside"]["cls_loss"]["mean"] == pytest.approx(0)
    assert found["arms"]["ultralytics"] == {"mean": 0.4, "standard_deviation": 0.0, "values": [0.4, 0.4]}


def test_summarize__counts_first_weights_once() -> None:
    maps = {"yolofit": [0.41, 0.43, 0.30, 0.32], "ultralytics": [0.40, 0.40, 0.30, 0.30]}
    runs = [run(arm, seed, value) for arm, values in maps.items() for seed, value in enumerate(values)]
    found = fidelity_statistics.summarize(runs, fidelity_arms.PAIRS, orders=2)["boards, last, validated by yolofit"]
    gap = found["gaps"]["yolofit less ultralytics"]
    assert (gap["seeds"], gap["independent"]) == (4, 2)
    # By hand: means 0.02 and 0.01 of the two first weights, deviation 0.00707, and 12.706 is t's quantile.
    assert gap["interval_95"] == pytest.approx([0.015 - 12.706 * 0.00707 / 2**0.5, 0.015 + 12.706 * 0.005], abs=1e-4)
    # Two values each, 0.02 apart, have a variance of 0.0002; the means, 0.11 apart, one of 0.00605.
    assert found["arms"]["yolofit"]["deviation_by_order"] == pytest.approx(0.0002**0.5)
    assert found["arms"]["yolofit"]["deviation_by_weights"] == pytest.approx((0.00605 - 0.0001) ** 0.5)


def run(trainer: str, seed: int, map50_95: float) -> dict:
    validated = {side: {"map50_95": map50_95, "cls_loss": 1.0} for side in fidelity.VALIDATORS}
    return {"trainer": trainer, "data": "boards", "seed": seed, "validated": {"last": validated, "best": validated}}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.010, 0.012, 0.008, 0.011], "non-inferior"),
        ([-0.030, -0.028, -0.032, -0.029], "inferior"),
        ([-0.020, 0.015, 0.002, -0.011], "undecided"),
        ([0.2], "undecided"),
    ],
)
def test_compared__decides_by_the_interval(values: list[float], verdict: str) -> None:
    assert fidelity_statistics.compared(values)["verdict"] == verdict


def test_compared__has_the_interval_of_student_s_t() -> None:
    found = fidelity_statistics.compared([1.0, 2.0, 3.0, 4.0])
    # By hand: mean 2.5, deviation 1.29, and 3.182 is the quantile of t with 3 degrees of freedom.
    half_width = 3.182 * 1.2910 / 2
    assert found["interval_95"] == pytest.approx([2.5 - half_width, 2.5 + half_width], abs=1e-3)


def test_seeds_to_decide__is_the_first_number_whose_interval_is_on_one_side() -> None:
    number = fidelity_statistics.seeds_to_decide(mean=0.0, deviation=0.02)
    assert fidelity_statistics.half_width(0.02, number) <= 0.005 < fidelity_statistics.half_width(0.02, number - 1)
    assert 62 <= number <= 66  # (1.96 * 0.02 / 0.005) ** 2 is 61.5, and t is a little wider
    assert fidelity_statistics.seeds_to_decide(mean=-0.005, deviation=0.02) is None


def test_windows__survive_the_way_to_their_batches_and_back() -> None:
    window = common.random_window(3, 64)
    back = fidelity_exchanges.as_window(fidelity_exchanges.as_their_batch(window))
    assert torch.equal(back.images, window.images) and back.names == window.names
    assert torch.equal(back.classes, window.classes) and torch.equal(back.image_index, window.image_index)
    torch.testing.assert_close(back.boxes_xyxy_px, window.boxes_xyxy_px)


def test_our_windows__count_the_epochs_that_are_read(tmp_path: Path) -> None:
    source = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=4, num_val=1, image_size=96))
    run = mock.Mock(data=source, close_mosaic=1, augment={}, image_size=64, seed=0, epochs=2, batch=2)
    windows = fidelity_exchanges.OurWindows(run, [None, None])
    iter(windows)  # Ultralytics' trainer asks for two iterators an epoch, and reads one
    assert windows.epoch == 0 and len(list(windows)) == 2 and windows.epoch == 1
    iter(windows)
    assert len(list(windows)) == 2 and windows.epoch == 2


def test_copy_data__leaves_the_source_alone_and_is_complete(tmp_path: Path) -> None:
    source = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=2, num_val=1, image_size=96))
    before = sorted((path, path.stat().st_mtime_ns) for path in source.parent.rglob("*"))
    copied = read_dataset_yaml(fidelity_run.copy_data(source, tmp_path / "copy"))
    assert copied.names == read_dataset_yaml(source).names
    assert all(path.is_relative_to(tmp_path / "copy") for split in copied.splits.values() for path in split)
    assert len(list((tmp_path / "copy").rglob("*.jpg"))) == 3 == len(list((tmp_path / "copy").rglob("*.txt")))
    assert sorted((path, path.stat().st_mtime_ns) for path in source.parent.rglob("*")) == before


def test_hold_back__moves_the_last_training_images_to_validation(tmp_path: Path) -> None:
    source = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=5, num_val=2, image_size=96))
    data = fidelity_run.copy_data(source, tmp_path / "copy")
    fidelity_run.hold_back(data, 2)
    description = read_dataset_yaml(data)
    found = {split: build_index(description, split) for split in ("train", "val")}
    names = {split: [Path(index.path(i)).stem for i in range(len(index))] for split, index in found.items()}
    assert names["train"] == ["00000", "00001", "00002"]
    assert sorted(names["val"]) == ["00000", "00001", "00003", "00004"]
    assert all(len(index.classes) for index in found.values())


def test_first_weights__are_those_of_the_seed(tmp_path: Path) -> None:
    source = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=1, num_val=1, image_size=96))
    states = []
    for name, seed in (("a.pt", 0), ("b.pt", 0), ("c.pt", 1)):
        fidelity_run.write_first_weights(tmp_path / name, source, seed, 96)
        states.append(read_weights(tmp_path / name).state["model.0.conv.weight"])
    assert states[0].equal(states[1]) and not states[0].equal(states[2])
