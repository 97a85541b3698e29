"""Writes a network into a file of another program: Ultralytics' .pt, ONNX, TorchScript or safetensors."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import ultralytics
from torch import Tensor, nn

from data.replacing import replacing
from engine.errors import ConfigError
from engine.run.checkpoint import LoadedNetwork
from models.architecture import plain_name
from models.detection.postprocess import NmsConfig
from models.network import detection_head
from models.weights.saved_weights import SAFETENSORS_KEY

SUFFIXES = {"ultralytics": ".pt", "onnx": ".onnx", "torchscript": ".torchscript", "safetensors": ".safetensors"}
INPUT, OUTPUT = "images", "output0"  # the names that Ultralytics' ONNX files have
ONNX_OPSET = 17


class InferenceNetwork(nn.Module):
    """A network with the inputs and outputs of Ultralytics' exports, for any batch and size.

    Input: (B, 3, H, W), RGB in [0, 1], H and W multiples of the largest stride. Output: (B, 4 + C, A): center x,
    center y, width and height of the box of each anchor in pixels of the input, then its C scores in [0, 1].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        head = detection_head(network)
        head.export = head.dynamic = True

    def forward(self, images: Tensor) -> Tensor:
        """Boxes and scores of images; the class describes both."""
        return self.network(images)


def export(loaded: LoadedNetwork, file_format: str, output: Path, nms: NmsConfig | None = None) -> None:
    """Write a network into a complete file, or leave an existing file as it is.

    Args:
        loaded: The network. Do not use it afterwards, because the export changes it.
        file_format: A key of `SUFFIXES`.
        output: The file. An existing file is replaced.
        nms: Limits of a non-maximum suppression within the file (``onnx`` only); None adds none.

    Raises:
        ConfigError: If a package is missing or the file cannot be written.
    """
    contents: dict[str, Callable[[], bytes]] = {  # in memory, because the libraries can crash if the disk is full
        "ultralytics": lambda: _ultralytics(loaded),
        "onnx": lambda: _onnx(loaded, nms),
        "torchscript": lambda: _torchscript(loaded),
        "safetensors": lambda: _safetensors(loaded),
    }
    content = contents[file_format]()
    try:
        with replacing(output) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"--output: {output}: cannot be written ({error.strerror}). Choose another file.") from error


def _ultralytics(loaded: LoadedNetwork) -> bytes:
    """The content that ``ultralytics.YOLO`` expects: the pickled model, its class names and training arguments."""
    model: Any = loaded.network.requires_grad_(True)
    model.names = dict(enumerate(loaded.class_names))
    model.task = "detect"
    model.args = {"task": "detect", "model": f"{plain_name(loaded.name)}.pt", "imgsz": loaded.image_size}
    checkpoint = {
        "model": model,
        "ema": None,
        "epoch": -1,
        "train_args": model.args,
        "date": datetime.now().isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
    }
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return file.getvalue()


def _safetensors(loaded: LoadedNetwork) -> bytes:
    metadata = {SAFETENSORS_KEY: json.dumps(loaded.description)}
    state = {name: tensor.contiguous() for name, tensor in loaded.network.state_dict().items()}
    return safetensors.torch.save(state, metadata)


def _torchscript(loaded: LoadedNetwork) -> bytes:
    extra = {"config.txt": json.dumps(_metadata(loaded))}  # Ultralytics reads this entry
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns, and recommends torch.export
        traced = torch.jit.trace(InferenceNetwork(loaded.network), _example(loaded), check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file, _extra_files=extra)
    return file.getvalue()


def _onnx(loaded: LoadedNetwork, nms: NmsConfig | None) -> bytes:
    try:
        import onnx

        from engine.inference.onnx_nms import append_nms
    except ImportError as error:
        rule = "the package onnx is not installed. Run pip install 'yolofit[export]'."
        raise ConfigError(f"--format: onnx: {rule}") from error

    axes = {INPUT: {0: "batch", 2: "height", 3: "width"}, OUTPUT: {0: "batch", 2: "anchors"}}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns, and recommends the newer exporter
        torch.onnx.export(
            InferenceNetwork(loaded.network),
            (_example(loaded),),
            file,  # type: ignore[arg-type]  # this exporter accepts open files
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=axes,
            opset_version=ONNX_OPSET,
            dynamo=False,  # the newer exporter needs another package
        )
    model = onnx.load_from_string(file.getvalue())
    if nms is not None:
        model = append_nms(model, OUTPUT, nms)
    for key, value in _metadata(loaded).items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _example(loaded: LoadedNetwork) -> Tensor:
    """Images for tracing. Their sides differ, so that the graph cannot confuse height and width."""
    side = max(loaded.image_size, 2 * loaded.stride_px)
    return torch.rand(2, 3, side, side - loaded.stride_px, generator=torch.Generator().manual_seed(0))


def _metadata(loaded: LoadedNetwork) -> dict:
    """The entries that ``YOLO("best.onnx")`` reads from an export."""
    return {
        "description": f"{loaded.name}, exported by yolofit",
        "task": "detect",
        "stride": loaded.stride_px,
        "batch": 1,
        "imgsz": [loaded.image_size, loaded.image_size],
        "names": dict(enumerate(loaded.class_names)),
        "args": {"dynamic": True, "nms": False, "half": False},
        "channels": 3,
    }
