"""Detectors of every family, and one of a user's own: trained for an epoch, validated, used and exported."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from data.formats.image import read_image
from engine.errors import ConfigError
from engine.export import main as export
from engine.fit import main as fit
from engine.inference.predictor import Predictor
from engine.predict import main as predict
from engine.run.checkpoint import load_network
from engine.validate import main as validate
from models.detection.boxes import decode_boxes
from models.detection.postprocess import NmsConfig
from models.network import build_network, class_width, head_strides
from tests.helpers.runs import make_boards, quickstart_arguments
from tests.helpers.ultralytics_files import run_ultralytics

OWN = "boards.yaml"
NETWORKS = {"yolov8n": 96, "yolov9t": 96, "yolo12n": 96, "yolov8n-p2": 96, "yolov3-tiny": 96, OWN: 80}
"""Image size by network: 80 is no multiple of 32, but of the only stride of that network."""
PREDICT = """
import json, sys
import numpy as np
from ultralytics import YOLO
image, found = np.load(sys.argv[1]), {}
for path in sys.argv[2:]:
    result = YOLO(path).predict(image[..., ::-1], imgsz=96, conf=1e-5, iou=1.0, verbose=False, save=False)
    found[path] = result[0].boxes.data.tolist()
print(json.dumps(found))
"""

pytestmark = pytest.mark.slow


@dataclass
class Trained:
    """A run of one epoch, whose YAML file and weights are gone."""

    network: str
    image_size: int
    folder: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_boards(tmp_path_factory, 4, 2)


@pytest.fixture(scope="module")
def all_trained(boards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    base, trained = tmp_path_factory.mktemp("families"), {}
    for network, image_size in NETWORKS.items():
        folder = base / network
        more = [f"--model.network={network}"]
        if network == OWN:
            folder, path = base / "own", shutil.copy("tests/helpers/boards.yaml", base / OWN)
            more = [f"--model.network={path}", f"--model.weights={wide_weights(base)}"]
        arguments = quickstart_arguments(boards, folder, image_size, 4, 2, *more)
        fit([*arguments, "--trainer.max_epochs=1", "--data.rectangular_validation=true"])
        trained[network] = Trained(network, image_size, folder, folder / "checkpoints" / "best.ckpt")
    (base / OWN).unlink()
    wide_weights(base).unlink()
    return trained


def wide_weights(folder: Path) -> Path:
    """Weights of our own network for 80 classes, whose class branches are wider than for a few."""
    path = folder / "coco.pt"
    if not path.exists():
        torch.save(build_network("tests/helpers/boards.yaml", 80).state_dict(), path)
    return path


@pytest.fixture(params=NETWORKS)
def trained(request: pytest.FixtureRequest, all_trained: dict[str, Trained]) -> Trained:
    return all_trained[request.param]


def picture(boards: Path, size: int) -> np.ndarray:
    """The upper left part of the first board."""
    image = read_image(sorted((boards.parent / "images" / "val").iterdir())[0])
    return image[:size, :size].copy()


def test_family__gives_the_boxes_of_the_exported_networks(trained: Trained, boards: Path) -> None:
    loaded = load_network(trained.checkpoint, "--ckpt_path")
    assert loaded.image_size == trained.image_size and loaded.stride_px == max(head_strides(loaded.network))
    image = torch.from_numpy(picture(boards, trained.image_size)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        raw = loaded.network(image)[1]
        boxes = decode_boxes(raw, head_strides(loaded.network)).transpose(1, 2)
    for file_format in ("ultralytics", "onnx", "torchscript", "safetensors"):
        export([f"--ckpt_path={trained.checkpoint}", f"--format={file_format}"])
    pickled = torch.load(trained.checkpoint.with_suffix(".pt"), weights_only=False)["model"]
    assert pickled.yaml["backbone"] == loaded.network.yaml["backbone"]
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
        session = onnxruntime.InferenceSession(trained.checkpoint.with_suffix(".onnx"))
        script = torch.jit.load(str(trained.checkpoint.with_suffix(".torchscript")))
        results = pickled.eval()(image)[0], torch.from_numpy(session.run(None, {"images": image.numpy()})[0])
        for result in (*results, script(image)):
            centers, halves, scores = result[:, :2], result[:, 2:4] / 2, result[:, 4:]
            torch.testing.assert_close(torch.cat([centers - halves, centers + halves], 1), boxes, atol=0.01, rtol=0)
            torch.testing.assert_close(scores, raw["scores"].sigmoid(), atol=1e-5, rtol=0)


def test_family__is_validated_and_used_without_its_yaml_file(trained: Trained, boards: Path, tmp_path: Path) -> None:
    for file_format in ("ultralytics", "safetensors"):
        export([f"--ckpt_path={trained.checkpoint}", f"--format={file_format}", "--overwrite"])
    files = [trained.checkpoint.with_suffix(suffix) for suffix in (".ckpt", ".pt", ".safetensors")]
    common = [f"--data.root={boards}", "--data.workers=0", f"--data.image_size={trained.image_size}"]
    results = [validate([*common, f"--ckpt_path={file}"]).as_dict() for file in files]
    assert results[0] == results[1] == results[2]
    source = sorted((boards.parent / "images" / "val").iterdir())[0]
    if trained.network == OWN:  # of Ultralytics' files the size is a multiple of 32, as it trains at no other
        files.remove(trained.checkpoint.with_suffix(".pt"))
    for file in files:
        predict([f"--ckpt_path={file}", f"--source={source}", f"--output={tmp_path / file.suffix}", "--conf=1e-5"])
    found = [json.loads((tmp_path / file.suffix / "predictions.json").read_text()) for file in files]
    assert all(one == found[0] for one in found)
    assert found[0]["annotations"]


@pytest.mark.parity
def test_family__is_used_by_ultralytics(all_trained: dict[str, Trained], boards: Path, tmp_path: Path) -> None:
    files = {}
    for trained in all_trained.values():
        output = tmp_path / f"{trained.folder.name}.pt"
        export([f"--ckpt_path={trained.checkpoint}", f"--output={output}"])
        files[str(output)] = trained
    np.save(tmp_path / "image.npy", picture(boards, 96))
    found = run_ultralytics(PREDICT, tmp_path, str(tmp_path / "image.npy"), *files)
    for path, trained in files.items():
        nms = NmsConfig(confidence=1e-5, iou=1.0, multi_label=False, max_detections=300)
        loaded = replace(load_network(trained.checkpoint, "--ckpt_path"), image_size=96)
        ours = Predictor(loaded, nms, torch.device("cpu")).detect(picture(boards, 96))
        theirs = torch.tensor(found[path])
        assert len(theirs) == len(ours.scores) > 20, path
        torch.testing.assert_close(theirs[:, 4], ours.scores, atol=1e-5, rtol=0)


def test_family__resumes_without_the_files_it_began_with_and_refuses_a_changed_one(
    all_trained: dict[str, Trained],
) -> None:
    trained = all_trained[OWN]
    last = trained.checkpoint.with_name("last.ckpt")
    arguments = [f"--config={trained.folder / 'config.yaml'}", f"--ckpt_path={last}", "--trainer.max_epochs=2"]
    path = trained.folder.parent / OWN
    changed = Path("tests/helpers/boards.yaml").read_text().replace("Dropout2d, [0.1]", "Dropout2d, [0.2]")
    path.write_text(changed)
    message = rf"^model\.network: {path}: backbone: is not as in {last}: leave the file as it was, or start from"
    with pytest.raises(ConfigError, match=message):
        fit(arguments)
    path.unlink()
    resumed = fit(arguments)
    assert resumed.trainer.current_epoch == 2 and class_width(resumed.model.network) == 80
