"""Weights of every origin, into networks of the same and of other classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from models.network import build_network
from models.weights.saved_weights import SavedWeights, WeightsError, _image_size, read_weights
from models.weights.transfer import transfer_weights, with_class_width
from tests.helpers.ultralytics_files import NAMES, write_ultralytics_files


@pytest.fixture(scope="module")
def ultralytics_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ultralytics_files(tmp_path_factory.mktemp("ultralytics"))


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def saved(network: nn.Module, class_names: list[str] | None) -> SavedWeights:
    return SavedWeights("a test", plain(network.state_dict()), "yolo11n", class_names)


@pytest.fixture
def pretrained() -> nn.Module:
    torch.manual_seed(1)
    return build_network("yolo11n", 3)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["trainer", "both", "stripped", "bare", "facade"])
def test_read_weights__ultralytics_file(name: str, ultralytics_files: Path) -> None:
    """The averaged weights, where there are two kinds, whether in half precision or not."""
    weights = read_weights(ultralytics_files / f"{name}.pt")
    expected = torch.load(ultralytics_files / "expected.pt", weights_only=True)
    assert set(weights.state) == set(expected)
    for key, tensor in expected.items():
        assert weights.state[key].dtype in (torch.float32, torch.int64)
        # bare.pt and facade.pt may hold FP32, what is expected was rounded to half precision.
        torch.testing.assert_close(weights.state[key], tensor, rtol=1e-3, atol=1e-6)
    assert (weights.network, weights.class_names, weights.image_size) == ("yolo11n", NAMES, 96)


@pytest.mark.parametrize(
    ("imgsz", "expected"),
    [(96, 96), (100, 128), ([640, 480], 640), ((320,), 320), ("640", None), (None, None), (0, None), ([], None)],
)
def test_image_size__is_what_ultralytics_trained_at(imgsz: object, expected: int | None) -> None:
    """The longest side, rounded up to a multiple of 32."""
    assert _image_size({"imgsz": imgsz}) == expected


@pytest.mark.parity
def test_read_weights__prefers_the_average(ultralytics_files: Path) -> None:
    average = read_weights(ultralytics_files / "both.pt").state["model.0.conv.weight"]
    model = torch.load(ultralytics_files / "expected-model.pt", weights_only=True)["model.0.conv.weight"]
    assert (average - model).min() > 0.2


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "model."])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_read_weights__state_dict(prefix: str, wrap: str | None, pretrained: nn.Module, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in pretrained.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "file.pth")
    weights = read_weights(tmp_path / "file.pth")
    assert_same_state(weights.state, pretrained.state_dict())
    assert (weights.network, weights.class_names) == (None, None)


def test_read_weights__yolofit_checkpoint(pretrained: nn.Module, tmp_path: Path) -> None:
    state = {f"network.{name}": torch.zeros_like(tensor) for name, tensor in pretrained.state_dict().items()}
    state |= {f"ema.network.{name}": tensor for name, tensor in pretrained.state_dict().items()}
    about = {"network": "yolo11n", "num_classes": 3, "class_names": NAMES, "image_size": 96}
    torch.save({"state_dict": state, "yolofit": about, "optimizer_states": [{}]}, tmp_path / "best.ckpt")
    weights = read_weights(tmp_path / "best.ckpt")
    assert_same_state(weights.state, pretrained.state_dict())
    assert (weights.network, weights.class_names, weights.image_size) == ("yolo11n", NAMES, 96)


@pytest.mark.parametrize("described", [True, False])
def test_read_weights__safetensors(described: bool, pretrained: nn.Module, tmp_path: Path) -> None:
    about = {"network": "yolo11n", "class_names": NAMES, "image_size": 96}
    metadata = {"yolofit": json.dumps(about)} if described else None
    state = {name: tensor.contiguous() for name, tensor in pretrained.state_dict().items()}
    save_file(state, tmp_path / "file.safetensors", metadata)
    weights = read_weights(tmp_path / "file.safetensors")
    assert_same_state(weights.state, pretrained.state_dict())
    assert weights.class_names == (NAMES if described else None)


def test_read_weights__ignores_a_safetensors_description_of_another_form(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "file.safetensors", {"yolofit": "[1]"})
    assert read_weights(tmp_path / "file.safetensors").network is None


def test_read_weights__rejects_files_without_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "no-weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "made.onnx").write_bytes(b"graph")
    for name, message in [
        ("no-weights.pt", "holds no weights"),
        ("list.pt", "holds neither a model nor a state dict"),
        ("text.safetensors", "header|Header"),
        ("missing.pt", "no such file"),
        ("made.onnx", "an exported .onnx holds no weights to use here: give the file it was made from"),
        ("missing.safetensors", "no such file"),
    ]:
        with pytest.raises(WeightsError, match=message):
            read_weights(tmp_path / name)


def test_read_weights__a_model_without_end(tmp_path: Path) -> None:
    """Each layer holds the next one twice: 2 to the power of 60 names in a file of a few kilobytes."""
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.zeros(1))
    for _ in range(60):
        outer = nn.Module()
        outer.a, outer.b = layer, layer
        layer = outer
    torch.save({"model": layer}, tmp_path / "endless.pt")
    with pytest.raises(WeightsError, match="more than 20000 layers"):
        read_weights(tmp_path / "endless.pt")


def head_rows(network: nn.Module, c: int) -> list[Tensor]:
    return [tensor[c] for branch in network.model[-1].cv3 for tensor in (branch[-1].weight, branch[-1].bias)]


def assert_same_rows(first: list[Tensor], second: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_transfer__same_classes_loads_everything(pretrained: nn.Module) -> None:
    network = build_network("yolo11n", 3)
    transfer = transfer_weights(network, saved(pretrained, NAMES), NAMES)
    assert_same_state(network.state_dict(), pretrained.state_dict())
    assert transfer.initialized == transfer.unused == transfer.initialized_classes == []
    assert transfer.loaded_classes == NAMES


def test_transfer__class_rows_go_by_name(pretrained: nn.Module) -> None:
    """In another order, one class is new, one gone; upper and lower case do not matter."""
    names = ["Chip", "diode", "resistor"]
    network = build_network("yolo11n", 3)
    new_row = [row.clone() for row in head_rows(network, 1)]
    transfer = transfer_weights(network, saved(pretrained, NAMES), names)
    assert_same_rows(head_rows(network, 0), head_rows(pretrained, 2))
    assert_same_rows(head_rows(network, 1), new_row)
    assert_same_rows(head_rows(network, 2), head_rows(pretrained, 0))
    assert (transfer.loaded_classes, transfer.initialized_classes) == (["Chip", "resistor"], ["diode"])
    ours, theirs = network.state_dict(), pretrained.state_dict()
    class_layers = tuple(f"model.23.cv3.{i}.2." for i in range(3))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith(class_layers))


def test_transfer__another_number_of_classes(pretrained: nn.Module) -> None:
    names = [*NAMES, "diode", "coil"]
    network = build_network("yolo11n", 5)
    transfer = transfer_weights(network, saved(pretrained, NAMES), names)
    for c in range(3):
        assert_same_rows(head_rows(network, c), head_rows(pretrained, c))
    assert transfer.initialized_classes == ["diode", "coil"]
    assert transfer.initialized == []


def test_transfer__other_features_before_the_class_layer() -> None:
    """Beyond 64 classes yolo11n has wider class branches: their rows mean nothing to narrow ones."""
    wide, network = build_network("yolo11n", 80), build_network("yolo11n", 3)
    before = [row.clone() for c in range(3) for row in head_rows(network, c)]
    transfer = transfer_weights(network, saved(wide, [f"c{i}" for i in range(77)] + NAMES), NAMES)
    assert transfer.loaded_classes == []
    assert_same_rows([row for c in range(3) for row in head_rows(network, c)], before)
    assert torch.equal(network.model[0].conv.weight, wide.model[0].conv.weight)
    assert {transfer.parts[name] for name in transfer.initialized} == {"class branches"}


@pytest.mark.parametrize("names", [None, ["0", "1", "2"]])
def test_transfer__without_names_rows_go_by_number(names: list[str] | None, pretrained: nn.Module) -> None:
    network, other = build_network("yolo11n", 3), build_network("yolo11n", 4)
    assert transfer_weights(network, saved(pretrained, names), NAMES).initialized_classes == []
    assert_same_state(network.state_dict(), pretrained.state_dict())
    assert transfer_weights(other, saved(pretrained, names), [*NAMES, "diode"]).loaded_classes == []


def test_num_classes__is_that_of_the_head(pretrained: nn.Module) -> None:
    weights = saved(pretrained, None)
    assert weights.num_classes == 3
    weights.state |= {"model.22.cv3.0.1.bias": torch.zeros(7), "criterion.cv3.0.1.bias": torch.zeros(8)}
    assert weights.num_classes == 3
    weights.state["model.23.cv3.1.2.bias"] = torch.zeros(4)
    assert weights.num_classes is None
    assert SavedWeights("a test", {"model.0.conv.weight": torch.zeros(1)}).num_classes is None


def test_transfer__table_says_everything(pretrained: nn.Module) -> None:
    weights = saved(pretrained, NAMES)
    weights.state |= {"model.22.extra": torch.zeros(1), "criterion.weight": torch.zeros(1)}
    del weights.state["model.0.conv.weight"]
    lines = transfer_weights(build_network("yolo11n", 3), weights, ["chip", "diode", "coil"]).table().splitlines()
    counts = {line[:15].strip(): [int(x) for x in line[15:].split()] for line in lines[2:-1]}
    assert lines[0] == "weights: a test"
    assert counts["backbone"][1:] == [1, 0] and counts["neck"][1:] == [0, 1] and counts["other"] == [0, 0, 1]
    assert sum(loaded for loaded, _, _ in counts.values()) == 498
    assert lines[-1] == "classes: 1 of 3 loaded; re-initialized: diode, coil"


def test_transfer__rejects_another_network_and_leaves_this_one_alone(pretrained: nn.Module) -> None:
    network = build_network("yolo11s", 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"^only \d+ of the network's 418 tensors are in it: it is a test"):
        transfer_weights(network, saved(pretrained, NAMES), NAMES)
    assert_same_state(network.state_dict(), before)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["yolo11n", "yolov8n", "yolo12n", "yolo11s"])
def test_transfer__from_80_classes_to_8_keeps_what_ultralytics_keeps(name: str) -> None:
    """All but the last layers of the class branches, though their inner width follows from the number of classes."""
    torch.manual_seed(1)
    coco = build_network(name, 80)
    theirs = DetectionModel(f"{name}.yaml", nc=8, verbose=False)
    theirs.load(coco, verbose=False)
    source = SavedWeights("a test", plain(coco.state_dict()), name)
    ours = with_class_width(build_network(name, 8), source)
    transfer = transfer_weights(ours, source, [f"class {c}" for c in range(8)])
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    new = {key for key, tensor in theirs.state_dict().items() if not torch.equal(tensor, coco.state_dict()[key])}
    assert set(transfer.initialized) == new and len(new) == 6


def test_with_class_width__leaves_other_networks_alone(pretrained: nn.Module) -> None:
    """Those with maps of another width before the heads, and files without heads."""
    small = build_network("yolo11s", 80)
    assert with_class_width(small, saved(pretrained, NAMES)) is small
    backbone = SavedWeights("a test", plain(pretrained.model[:10].state_dict()))
    assert with_class_width(pretrained, backbone) is pretrained


def test_transfer__rejects_nan(pretrained: nn.Module) -> None:
    pretrained.model[3].bn.weight.data[0] = float("nan")
    with pytest.raises(WeightsError, match=r"^its tensor model\.3\.bn\.weight holds NaN or infinity"):
        transfer_weights(build_network("yolo11n", 3), saved(pretrained, NAMES), NAMES)
