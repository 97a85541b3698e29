"""``auto`` becomes numbers before the run; the run follows the plan and writes it down."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.command_line.cli import CommandLine
from engine.errors import ConfigError
from engine.loop.advice import advise_before
from engine.memory.units import GIB
from engine.planning import predict, settle
from engine.planning.data_section import check_sizes
from engine.planning.settle import settle_memory, settled_without_plan, spec_of, what_fits
from engine.planning.simulation import StepSpec
from engine.training.config import ModelConfig
from tests.helpers import fake_gpu

SMALL = ("--config=configs/quickstart.yaml", "--data.batch_size=8", "--data.image_size=64")
AUTO = ("--data.micro_batch_size=auto", "--model.recompute=auto")


def config_of(*args: str) -> object:
    return CommandLine(list(args)).config


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake GPU: tests set its budget and read the limit that the allocator got."""
    told = SimpleNamespace(budget_bytes=16 * GIB, cap_bytes=None)
    monkeypatch.setattr(settle, "device_of", lambda trainer: torch.device("cuda", 0))
    monkeypatch.setattr(settle, "resolve_budget", lambda memory, device: told.budget_bytes)
    monkeypatch.setattr(settle, "cap_allocator", lambda device, num_bytes: setattr(told, "cap_bytes", num_bytes))
    monkeypatch.setattr(settle, "enable_expandable_segments", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return told


def test_settle__puts_the_plan_in_place_of_auto(gpu: SimpleNamespace) -> None:
    given = config_of(*SMALL, *AUTO)
    config, ahead = settle_memory(given)
    assert given.data.micro_batch_size == given.model.recompute == "auto"
    assert config.data.micro_batch_size == ahead.plan.micro_batch == 8
    assert config.model.recompute == ahead.plan.recompute == "elementwise"  # the fastest, with fused kernels
    assert ahead.plan.peak_bytes == sum(ahead.plan.components.values()) < gpu.budget_bytes
    assert gpu.cap_bytes == gpu.budget_bytes


def test_settle__takes_less_at_a_time_for_a_small_budget(gpu: SimpleNamespace) -> None:
    args = (*SMALL, *AUTO, "--data.image_size=320")
    gpu.budget_bytes = int(0.95 * settle_memory(config_of(*args))[1].plan.peak_bytes)
    config, ahead = settle_memory(config_of(*args))
    assert ahead.plan.peak_bytes <= gpu.budget_bytes
    assert (config.data.micro_batch_size, config.model.recompute) != (8, "none")
    assert ahead.plan.accumulate * config.data.micro_batch_size >= 8


def test_settle__keeps_what_the_user_has_fixed(gpu: SimpleNamespace) -> None:
    config, ahead = settle_memory(config_of(*SMALL, "--data.micro_batch_size=3", "--model.recompute=auto"))
    assert ahead.plan.micro_batch == config.data.micro_batch_size == 3
    config, ahead = settle_memory(config_of(*SMALL, "--data.micro_batch_size=auto", "--model.recompute=block"))
    assert ahead.plan.recompute == config.model.recompute == "block"


@pytest.mark.parametrize("key", ["data.micro_batch_size", "model.recompute"])
def test_settle__refuses_levels_of_layers_that_a_plan_would_not_keep(key: str) -> None:
    fixed = {"data.micro_batch_size": "4", "model.recompute": "none"} | {key: "auto"}
    args = [f"--{name}={value}" for name, value in fixed.items()]
    with pytest.raises(ConfigError, match=f"^model.recompute_layers: {{2: 'block'}}: {key} auto .* set {key} to"):
        settle_memory(config_of(*SMALL, *args, "--model.recompute_layers={2: block}"))


def test_settle__predicts_and_warns_where_everything_is_fixed(
    gpu: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    args = (*SMALL, "--data.micro_batch_size=4", "--model.recompute=none", "--model.recompute_layers={2: block}")
    with caplog.at_level(logging.WARNING):
        _, ahead = settle_memory(config_of(*args))
        assert caplog.messages == []
        assert (ahead.plan.micro_batch, ahead.plan.accumulate) == (4, 2)
        gpu.budget_bytes = ahead.plan.peak_bytes - 1
        settle_memory(config_of(*args))
    assert caplog.messages[0].startswith("data.micro_batch_size: 4: needs")


def test_settle__on_a_cpu_plans_only_for_auto() -> None:
    assert settle_memory(config_of(*SMALL))[1] is None
    assert settle_memory(config_of(*SMALL, *AUTO))[1].plan.micro_batch == 8


def test_settle__refuses_sizes_before_it_plans() -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size: 650: must be a multiple of 32"):
        settle_memory(config_of(*SMALL, *AUTO, "--data.image_size=650"))


@pytest.mark.parametrize(
    ("image_size", "stride_px", "message"),
    [
        (96, 64, "data.image_size: 96: must be a multiple of 64. Use 128."),
        (64, 64, "data.image_size: 64: leaves the deepest layers one value per channel"),
        (40, 16, "data.image_size: 40: must be a multiple of 16. Use 32."),
        (16, 16, "data.image_size: 16: leaves the deepest layers one value per channel"),
    ],
)
def test_check_sizes__takes_multiples_of_the_networks_stride(image_size: int, stride_px: int, message: str) -> None:
    check_sizes(16, "auto", 3 * stride_px, 0.4, stride_px)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        check_sizes(16, "auto", image_size, 0.0, stride_px)


def test_what_fits__steps_by_the_stride_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def nothing_fits(spec: StepSpec, *_: int, batch_size: int) -> None:
        tried.append(spec.image_size)
        raise ConfigError("nothing fits")

    monkeypatch.setattr(settle, "recommend", nothing_fits)
    what_fits(StepSpec(ModelConfig("yolov8n-p6"), image_size=512), GIB)
    assert tried == [384, 256, 128]


def test_settle__says_what_would_do_if_nothing_fits(gpu: SimpleNamespace) -> None:
    gpu.budget_bytes = GIB // 2
    with pytest.raises(ConfigError, match=r"^memory\.budget: 512\.0 MiB: nothing fits\. .*micro-batch 1"):
        settle_memory(config_of(*SMALL, *AUTO))


def test_spec__counts_the_boxes_of_the_worst_mosaic(tmp_path: Path) -> None:
    data_yaml = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=8, num_val=2, image_size=96))
    labels = sorted((data_yaml.parent / "labels" / "train").glob("*.txt"))
    labels[3].write_text("".join(f"0 0.5 0.5 0.1 {0.1 + i / 1000}\n" for i in range(200)))
    with_mosaic, _ = spec_of(config_of(*SMALL, f"--data.root={data_yaml}"))
    without, _ = spec_of(config_of(*SMALL, f"--data.root={data_yaml}", "--data.augment.mosaic=0"))
    assert without.boxes_per_image == 200
    assert with_mosaic.boxes_per_image > 200


def test_spec__of_a_data_set_without_a_usable_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a]\n")
    arguments = [f"--data.root={tmp_path / 'data.yaml'}", "--data.augment.mosaic=0"]
    assert spec_of(CommandLine(arguments).config)[0].boxes_per_image == 1


def test_settle__without_fused_kernels_nothing_is_faster_than_none(gpu: SimpleNamespace) -> None:
    config, _ = settle_memory(config_of(*SMALL, *AUTO, "--model.fused_kernels=false"))
    assert config.model.recompute == "none"


def test_ahead__is_written_into_the_run_folder(gpu: SimpleNamespace, tmp_path: Path) -> None:
    _, ahead = settle_memory(config_of(*SMALL, *AUTO))
    ahead.save(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["peak_bytes"] == sum(plan["components"].values())
    assert (plan["budget_bytes"], plan["micro_batch"], plan["recompute"]) == (16 * GIB, 8, "elementwise")
    assert str(ahead).startswith("plan: 8 images a step as one micro-batch at 64 px, fp32, recompute elementwise: ")


def test_settled_without_plan__gives_numbers_to_validation() -> None:
    given = config_of(*SMALL, *AUTO)
    config = settled_without_plan(given)
    assert given.data.micro_batch_size == given.model.recompute == "auto"
    assert (config.data.micro_batch_size, config.model.recompute) == (8, "none")


def test_what_fits__names_an_image_size_that_does() -> None:
    spec = StepSpec(ModelConfig("yolo11n"), num_classes=5, image_size=256, boxes_per_image=5)
    assert what_fits(spec, int(0.95 * GIB)).startswith("Lower data.image_size to 192, which fits 972.8 MiB")
    assert what_fits(replace(spec, image_size=128), GIB // 2).startswith("No image size fits 512.0 MiB")


@pytest.mark.parametrize(
    "variables",
    [
        {"LOCAL_RANK": "1"},
        {
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_JOB_NAME": "train",
            "SLURM_PROCID": "1",
            "SLURM_LOCALID": "1",
        },
    ],
)
def test_settle__a_process_asks_only_about_its_own_gpu(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question about another GPU opens a CUDA context there: about 500 MiB that no plan counts."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = fake_gpu.install_two(monkeypatch)
    monkeypatch.setattr(settle, "enable_expandable_segments", lambda: False)
    monkeypatch.setattr(predict, "_simulated", lambda *_: {})  # a simulation asks torch for a real GPU
    config = config_of(*SMALL, *AUTO, "--trainer.devices=2", "--trainer.accelerator=gpu")
    assert settle_memory(config)[1] is not None
    advise_before(config)
    assert asked[0] == ("set_device", 1)
    assert {index for _, index in asked} == {1}
    assert {"mem_get_info", "get_device_capability", "set_per_process_memory_fraction"} <= {name for name, _ in asked}


def test_advise_before__leaves_the_gpus_alone_that_a_run_on_the_cpu_does_not_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = fake_gpu.install_two(monkeypatch)
    advise_before(config_of(*SMALL, "--trainer.accelerator=cpu"))
    assert asked == []


def test_settle__plans_the_share_of_one_device(gpu: SimpleNamespace) -> None:
    """A window of 7 images on 2 devices: the plan is for the larger share, 4 images."""
    config, ahead = settle_memory(config_of(*SMALL, *AUTO, "--data.batch_size=7", "--trainer.devices=2"))
    assert ahead.batch_size == 4 and config.data.micro_batch_size == 4
    _, alone = settle_memory(config_of(*SMALL, *AUTO, "--data.batch_size=4"))
    assert ahead.plan == alone.plan


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [640, 800])
def test_settle__puts_every_row_of_the_popular_table_into_16_gib(gpu: SimpleNamespace, image_size: int) -> None:
    config = config_of(
        "--data.root=synthetic", "--model.network=yolo11l", "--model.precision=fp16", "--data.batch_size=32", *AUTO,
        f"--data.image_size={image_size}",
    )  # fmt: skip
    _, ahead = settle_memory(config)
    assert ahead.plan.peak_bytes < 16 * GIB
    assert ahead.plan.micro_batch * ahead.plan.accumulate == 32


def test_settle__plans_for_the_largest_image_of_multi_scale_training(gpu: SimpleNamespace) -> None:
    _, largest = settle_memory(config_of(*SMALL, *AUTO, "--data.image_size=96"))
    varied, ahead = settle_memory(config_of(*SMALL, *AUTO, "--data.multi_scale=0.5"))
    plan = ahead.plan
    assert plan.image_size == 96 and plan.peak_bytes == largest.plan.peak_bytes
    assert varied.data.image_size == 64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.0", r"^data\.multi_scale: 1\.0: must be a share of data\.image_size from 0 to 0\.9\.$"),
        ("-0.1", r"^data\.multi_scale: -0\.1: must be a share"),
        ("0.4", r"^data\.multi_scale: 0\.4: is less than 32 pixels of .* 64, .* Give 0 or at least 0\.5\.$"),
    ],
)
def test_settle__rejects_multi_scale_that_cannot_be(gpu: SimpleNamespace, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settle_memory(config_of(*SMALL, *AUTO, f"--data.multi_scale={value}"))
