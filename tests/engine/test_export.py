"""Exported files against the network that they were made of, each in the program that will read it."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from data.formats.image import read_image
from engine.errors import ConfigError
from engine.export import main
from engine.inference.export_formats import SUFFIXES
from engine.inference.predictor import Predictor
from engine.run.checkpoint import LoadedNetwork, load_network
from engine.validate import main as validate
from models.detection.boxes import decode_boxes
from models.detection.postprocess import NmsConfig, detections
from models.network import head_strides
from tests.helpers.checkpoints import Overfitted
from tests.helpers.faults import FULL, full_disk
from tests.helpers.ultralytics_files import run_ultralytics

SHAPES = [(1, 3, 96, 96), (3, 3, 64, 160)]


pytestmark = pytest.mark.slow  # a short training comes first


@pytest.fixture(scope="module")
def folder(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint, and each format beside it."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(overfitted.checkpoint, folder / "best.ckpt")
    for file_format in SUFFIXES:
        main([f"--ckpt_path={folder / 'best.ckpt'}", f"--format={file_format}"])
    nms = [f"--output={folder / 'nms.onnx'}", "--nms", "--conf=0.01", "--iou=0.6"]
    main([f"--ckpt_path={folder / 'best.ckpt'}", "--format=onnx", *nms])
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedNetwork:
    return load_network(folder / "best.ckpt", "--ckpt_path")


def board_images(overfitted: Overfitted, shape: tuple[int, ...]) -> torch.Tensor:
    """The first boards, cut or repeated to a shape."""
    boards = [torch.from_numpy(read_image(path)).permute(2, 0, 1) / 255 for path in overfitted.images[: shape[0]]]
    return torch.stack(boards).repeat(1, 1, 2, 2)[:, :, : shape[2], : shape[3]].contiguous()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual[:, :4], expected[:, :4], atol=1e-3, rtol=0)  # pixels
    torch.testing.assert_close(actual[:, 4:], expected[:, 4:], atol=1e-5, rtol=0)  # scores


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx__equals_torch_at_any_batch_and_size(
    shape: tuple, folder: Path, loaded: LoadedNetwork, overfitted: Overfitted
) -> None:
    images = board_images(overfitted, shape)
    session = onnxruntime.InferenceSession(folder / "best.onnx")
    with torch.inference_mode():
        assert_close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), loaded.network(images)[0])
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["names"] == str(dict(enumerate(overfitted.names))) and metadata["task"] == "detect"


@pytest.mark.parametrize("shape", SHAPES)
def test_torchscript__equals_torch_at_any_batch_and_size(
    shape: tuple, folder: Path, loaded: LoadedNetwork, overfitted: Overfitted
) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch would rather have torch.export
        script = torch.jit.load(str(folder / "best.torchscript"))
    images = board_images(overfitted, shape)
    with torch.inference_mode():
        assert_close(script(images), loaded.network(images)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_nms__gives_our_detections(shape: tuple, folder: Path, overfitted: Overfitted) -> None:
    images = {"images": board_images(overfitted, shape).numpy()}
    session = onnxruntime.InferenceSession(folder / "nms.onnx")
    assert [(x.name, x.shape[1]) for x in session.get_outputs()] == [("detections", 7)]
    rows = torch.from_numpy(session.run(None, images)[0])
    # From the very predictions that the suppression within the file saw: rounding decides near the limits.
    plain = onnxruntime.InferenceSession(folder / "best.onnx").run(None, images)[0]
    centers, sizes, scores = torch.from_numpy(plain).split([2, 2, len(overfitted.names)], dim=1)
    corners = torch.cat([centers - sizes / 2, centers + sizes / 2], 1).transpose(1, 2)
    limits = NmsConfig(confidence=0.01, iou=0.6, max_detections=10**6)
    for i, expected in enumerate(detections(corners, scores.double().logit(), limits)):
        own = rows[rows[:, 0] == i, 1:]
        own = own[own[:, 4].argsort(descending=True, stable=True)]
        ours = torch.column_stack([expected.boxes_xyxy_px, expected.scores, expected.classes])
        assert len(own) > 10
        torch.testing.assert_close(own, ours, atol=1e-3, rtol=0)


def test_safetensors__come_back_whole(folder: Path, loaded: LoadedNetwork) -> None:
    again = load_network(folder / "best.safetensors", "--ckpt_path")
    assert again.description == loaded.description
    ours, theirs = loaded.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_ultralytics__comes_back_whole(folder: Path, loaded: LoadedNetwork) -> None:
    again = load_network(folder / "best.pt", "--ckpt_path")
    assert again.description == loaded.description
    ours, theirs = loaded.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


PREDICT = """
import json, sys
import numpy as np
from ultralytics import YOLO
image = np.load(sys.argv[2])
model = YOLO(sys.argv[1], task="detect")
result = model.predict(image[..., ::-1], imgsz=96, conf=0.01, iou=0.6, verbose=False, max_det=300, save=False)[0]
data = result.boxes.data.tolist()
print(json.dumps({"names": list(model.names.values()), "boxes": data}))
"""


@pytest.mark.parity
@pytest.mark.parametrize("name", ["best.pt", "best.onnx", "best.torchscript"])
def test_ultralytics__predicts_the_same_boxes(
    name: str, folder: Path, loaded: LoadedNetwork, overfitted: Overfitted, tmp_path: Path
) -> None:
    """On a picture of the input's size, which needs no letterbox: there the two round differently."""
    image = read_image(overfitted.images[0])
    np.save(tmp_path / "image.npy", image)
    theirs = run_ultralytics(PREDICT, tmp_path, str(folder / name), str(tmp_path / "image.npy"))
    nms = NmsConfig(confidence=0.01, iou=0.6, multi_label=False)
    ours = Predictor(loaded, nms, torch.device("cpu")).detect(image)
    assert theirs["names"] == overfitted.names
    rows = torch.tensor(theirs["boxes"])
    assert len(rows) == len(ours.scores) > 10
    torch.testing.assert_close(rows[:, :4], ours.boxes_xyxy_px, atol=1e-3, rtol=0)
    torch.testing.assert_close(rows[:, 4], ours.scores, atol=1e-5, rtol=0)
    assert torch.equal(rows[:, 5].long(), ours.classes)


VALIDATE = """
import json, sys
from ultralytics import YOLO
model = YOLO(sys.argv[1])
results = model.val(data=sys.argv[2], imgsz=96, batch=4, rect=False, half=False, workers=0, plots=False, verbose=False)
box = results.box
classes = {"classes": box.ap_class_index.tolist(), "precision": box.p.tolist(), "recall": box.r.tolist()}
print(json.dumps(classes | {"means": dict(zip(("recall", "map50", "map50_95"), results.mean_results()[1:]))}))
"""


@pytest.mark.parity
def test_ultralytics__validates_as_we_do(folder: Path, overfitted: Overfitted, tmp_path: Path) -> None:
    """On the same weights and pictures; their AP is the area under a curve of 101 points, ours COCO's mean.

    Precision is compared where there is any: of classes of which nothing is found, theirs is 1.
    """
    config = overfitted.checkpoint.parents[1] / "config.yaml"
    ours = validate([f"--config={config}", f"--ckpt_path={overfitted.checkpoint}"])
    shutil.copytree(overfitted.data_yaml.parent, tmp_path / "boards")  # they write a cache beside the labels
    content = yaml.safe_load(overfitted.data_yaml.read_text()) | {"path": str(tmp_path / "boards")}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    theirs = run_ultralytics(VALIDATE, tmp_path, str(folder / "best.pt"), str(tmp_path / "data.yaml"))
    print(theirs, ours.summary())
    assert ours.map50 > 0.1
    for name, value in theirs["means"].items():
        assert getattr(ours, name) == pytest.approx(value, abs=5e-3), name
    assert ours.recall_C[theirs["classes"]] == pytest.approx(theirs["recall"], abs=5e-3)
    for c, precision, recall in zip(theirs["classes"], theirs["precision"], theirs["recall"], strict=True):
        assert ours.precision_C[c] == pytest.approx(precision if recall > 0 else 0, abs=5e-3), ours.class_names[c]


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_validate__takes_other_files_than_checkpoints(name: str, folder: Path, overfitted: Overfitted) -> None:
    """Without a configuration of their run: which network it is stands in the file."""
    arguments = [f"--data.root={overfitted.data_yaml}", "--data.image_size=96", "--data.workers=0"]
    results = [validate([*arguments, f"--ckpt_path={folder / file}"]) for file in ("best.ckpt", name)]
    assert results[0].map50 > 0.1
    assert results[0].as_dict() == results[1].as_dict()


def test_decode_boxes__equals_the_exported_head(loaded: LoadedNetwork, overfitted: Overfitted) -> None:
    with torch.inference_mode():
        output, raw = loaded.network(board_images(overfitted, SHAPES[1]))
    ours = decode_boxes(raw, head_strides(loaded.network)).transpose(1, 2)
    theirs = torch.cat([output[:, :2] - output[:, 2:4] / 2, output[:, :2] + output[:, 2:4] / 2], 1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)  # they go from corners to centers and back


def test_main__says_before_it_writes_over_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--ckpt_path={folder / 'best.ckpt'}", "--format=safetensors"]
    before = (folder / "best.safetensors").stat().st_mtime_ns
    message = f"--output: {folder / 'best.safetensors'}: exists: choose another file, or add --overwrite"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        main(arguments)
    assert (folder / "best.safetensors").stat().st_mtime_ns == before
    assert main([*arguments, "--overwrite"]) == folder / "best.safetensors"
    assert (folder / "best.safetensors").stat().st_mtime_ns > before


@pytest.mark.parametrize("file_format", SUFFIXES)
def test_main__a_full_disk_is_one_line_and_leaves_nothing(file_format: str, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "best"
    output.write_text("before")
    arguments = [f"--ckpt_path={folder / 'best.ckpt'}", f"--format={file_format}", f"--output={output}", "--overwrite"]
    with full_disk(at_bytes=2**20), pytest.raises(ConfigError, match=rf"best: cannot be written \({FULL}\)"):
        main(arguments)
    assert output.read_text() == "before"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nms"], "--nms: goes with --format onnx, not ultralytics"),
        (["--nms", "--format=onnx", "--conf=2", "--output=new.onnx"], "--conf: 2.0: must be between 0 and 1"),
        (["--nms", "--format=onnx", "--iou=-1", "--output=new.onnx"], "--iou: -1.0: must be between 0 and 1"),
        (["--output=/no/such/folder/best.pt"], "--output: /no/such/folder/best.pt: cannot be written"),
    ],
)
def test_main__rejects_wrong_options(arguments: list[str], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        main([f"--ckpt_path={folder / 'best.ckpt'}", *arguments])


def test_main__rejects_a_checkpoint_without_a_name() -> None:
    with pytest.raises(ConfigError, match=r"^--ckpt_path: is empty: give a path"):
        main(["--ckpt_path="])
