"""Level `elementwise` on every family of networks: the same numbers, and few bytes; each recipe on a small module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.modules import ADown, C2f, Conv, ConvTranspose, GhostBottleneck
from ultralytics.nn.modules.block import A2C2f, AConv, BottleneckCSP, HGStem, RepBottleneck, RepVGGDW
from ultralytics.nn.modules.conv import RepConv

from engine.memory.storages import cuda_autocast_on_meta
from engine.planning.simulation import kernels_left_out
from models.network import batch_norms, build_network, freeze_batch_norms
from models.recompute.levels import apply_recompute
from models.recompute.rank import measure_layers
from tests.helpers.storage import StorageMeter
from tests.helpers.training import copy_of, flat_gradient, relative_error

FAMILIES = [
    "yolov3-tiny",
    "yolov5n",
    "yolov5n-p6",
    "yolov6n",
    "yolov8n",
    "yolov8n-p2",
    "yolov8n-p6",
    "yolov8n-ghost",
    "yolov8n-ghost-p2",
    "yolov8n-ghost-p6",
    "yolov9t",
    "yolo11n",
    "yolo12n",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolov3", "yolov3-spp", "yolov9m", "yolov9c", "yolov9e")),
]


def loss_of(network: nn.Module, images: Tensor) -> Tensor:
    """A loss in which each prediction has another weight, back-propagated."""
    predictions = network(images)
    values = torch.cat([predictions[name].flatten() for name in ("boxes", "scores")])
    loss = (values * torch.linspace(-1, 1, len(values), dtype=values.dtype)).sum() + values.square().sum()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", FAMILIES)
def test_elementwise__same_loss_gradients_and_statistics(name: str) -> None:
    torch.manual_seed(0)
    plain = build_network(name, 5).double()
    lean = copy_of(plain)
    apply_recompute(lean, "elementwise")
    size = 128 if name.endswith("p6") else 64
    images = torch.rand(2, 3, size, size, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert torch.equal(loss_of(lean, images), loss_of(plain, images))
    assert relative_error(flat_gradient(lean), flat_gradient(plain)) <= 1e-12
    buffers = dict(plain.named_buffers())
    assert [name for name, buffer in lean.named_buffers() if not torch.equal(buffer, buffers[name])] == []


@pytest.mark.parametrize(
    ("name", "most_elementwise", "most_block"),
    [
        ("yolov8l", 0.33, 0.12),
        ("yolov9c", 0.34, 0.12),
        ("yolo12l", 0.40, 0.08),
        ("yolov6l", 0.50, 0.14),
        ("yolov3-tiny", 0.33, 0.30),
    ],
)
def test_measure_layers__share_of_the_bytes_that_none_keeps(
    name: str, most_elementwise: float, most_block: float
) -> None:
    """At 640 px in fp16. ReLU has no map of its own between BatchNorm and its result, so yolov6l can save only half."""
    images = torch.empty(2, 3, 640, 640, dtype=torch.float16, device="meta").to(memory_format=torch.channels_last)
    network = build_network(name, 25)
    with kernels_left_out():
        layers = measure_layers(network, images, cuda_autocast_on_meta(torch.float16))
    none_bytes = sum(layer.none_bytes for layer in layers)
    assert sum(layer.elementwise_bytes for layer in layers) <= most_elementwise * none_bytes
    assert sum(layer.block_bytes for layer in layers) <= most_block * none_bytes


class Network(nn.Module):
    """A network of one layer, of which ``levels`` need to know no more than that."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        layer.i = 0
        self.model = nn.Sequential(layer)


def in_a_row(*layers: nn.Module) -> nn.Module:
    """Layers between two convolutions, of which the second keeps its input if this has no recipe."""
    return nn.Sequential(Conv(8, 8, 3), *layers, nn.Conv2d(8, 8, 1))


class Scaled(nn.Module):
    """A sum with a number, and a product with a parameter, as those of `RepConv` and `A2C2f`."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma.view(1, -1, 1, 1) * (2 + x)


ACTIVATIONS = [
    *(nn.ReLU(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.SiLU(), nn.Identity()),
    *(nn.ELU(0.7), nn.SELU(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh()),
]
IN_PLACE = [
    act(inplace=True) for act in (nn.ReLU, nn.LeakyReLU, nn.Hardswish, nn.Mish, nn.SiLU, nn.ELU, nn.SELU, nn.ReLU6)
]
LAYERS = {
    **{repr(act): in_a_row(Conv(8, 8, 3, act=act)) for act in ACTIVATIONS},
    **{f"{type(act).__name__} in place": in_a_row(Conv(8, 8, 3, act=act)) for act in IN_PLACE},
    "RepConv": in_a_row(RepConv(8, 8)),
    "RepConv with BatchNorm of its input": in_a_row(RepConv(8, 8, bn=True)),
    "RepBottleneck": in_a_row(RepBottleneck(8, 8)),
    "RepVGGDW": in_a_row(RepVGGDW(8)),
    "ADown": in_a_row(ADown(8, 8)),
    "AConv": in_a_row(AConv(8, 8)),
    "GhostBottleneck": in_a_row(GhostBottleneck(8, 8)),
    "HGStem": in_a_row(HGStem(8, 8, 8)),
    "BottleneckCSP": in_a_row(BottleneckCSP(8, 8)),
    "C2f": in_a_row(C2f(8, 8, shortcut=True)),
    "ConvTranspose": in_a_row(ConvTranspose(8, 8)),
    "layers of torch": in_a_row(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
    "pooling and padding": in_a_row(nn.MaxPool2d(2, 1), nn.ConstantPad2d((0, 1, 2, 0), 0.5), nn.AvgPool2d(3, 2, 1)),
    "enlarged": in_a_row(nn.Upsample(scale_factor=2)),
    "sum and product": in_a_row(Scaled()),
}

SINGLE_BATCH_NORMS = ("RepConv with BatchNorm of its input", "BottleneckCSP", "ConvTranspose", "layers of torch")
"""Layers in which a BatchNorm outside of `Conv` runs PyTorch's code when it is frozen."""


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_elementwise__keeps_only_raw_outputs_of_convolutions(name: str, frozen: bool) -> None:
    torch.manual_seed(0)
    plain = Network(copy_of(LAYERS[name])).double()
    if frozen:
        freeze_batch_norms(batch_norms(plain))
    lean = copy_of(plain)
    apply_recompute(lean, "elementwise")
    raw_bytes = []
    for module in lean.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda *results: raw_bytes.append(results[2].nbytes))
    x = torch.randn(2, 8, 16, 16, dtype=torch.float64, requires_grad=True)
    with StorageMeter(existing=[x, *lean.parameters(), *lean.buffers()]) as meter:
        out = lean.model(x)
    if not frozen or name not in SINGLE_BATCH_NORMS:
        assert meter.live_bytes <= sum(raw_bytes) + 2048  # statistics
    assert torch.equal(out, plain.model(x))
    gradients = [
        torch.autograd.grad(network.model(x).sigmoid().square().sum(), [x, *network.parameters()])
        for network in (lean, plain)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("area", [1, 4])
def test_elementwise__keeps_the_scores_of_area_attention_once(area: int) -> None:
    """Under autocast on a GPU, PyTorch keeps their softmax in FP32 and in half precision."""
    plain = Network(A2C2f(64, 64, residual=True, area=area)).double()
    lean = copy_of(plain)
    apply_recompute(lean, "elementwise")
    x = torch.randn(2, 64, 32, 32, dtype=torch.float64, requires_grad=True)
    gradients = [
        torch.autograd.grad(network.model(x).sigmoid().square().sum(), [x, *network.parameters()])
        for network in (lean, plain)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)
    score_bytes = 2 * 2 * 32**4 // area * 2  # in 2 blocks of 1 head, for 2 images, in half precision
    kept_bytes = []
    for network in (lean, plain):
        network.to("meta", torch.float32)
        images = torch.empty(2, 64, 32, 32, dtype=torch.float16, device="meta")
        meter = StorageMeter(existing=[images, *network.parameters(), *network.buffers()])
        with meter, cuda_autocast_on_meta(torch.float16):
            out = network.model(images)
        kept_bytes.append(meter.live_bytes)
        del out
    assert kept_bytes[1] - kept_bytes[0] >= 2 * score_bytes
