"""Level `block` repeats any layer exactly, or refuses it with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._pytree import tree_iter
from ultralytics.nn.modules import Conv

from models.detection.loss import DetectionLoss, LossGains
from models.network import build_network, head_strides
from models.recompute import norm_act
from models.recompute.levels import apply_recompute
from tests.helpers.training import NUM_CLASSES, copy_of, flat_gradient, make_window, relative_error

FUSES_LEVELS = {
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "CBLinear", [[16]]],
        [0, 1, "Conv", [32, 3, 2]],
        [-1, 1, "CBLinear", [[16, 32]]],
        [-1, 1, "nn.Identity", []],
        [0, 1, "Conv", [32, 3, 2]],
        [[3, -1], 1, "CBFuse", [[1]]],
        [-1, 1, "Conv", [32, 3, 2]],
    ],
    "head": [[[6, 7], 1, "Detect", ["nc"]]],
}
ATTENTION = {
    "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3TR", [32]], [-1, 1, "Conv", [32, 3, 2]]],
    "head": [[[1, 2], 1, "Detect", ["nc"]]],
}


def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    architecture = {"fuses levels": FUSES_LEVELS, "attention": ATTENTION}.get(name, name.partition(" ")[0])
    network = build_network(architecture, NUM_CLASSES)
    if name.endswith("dropout"):
        for layer in network.model[2], network.model[4]:
            layer.cv2.act = nn.Sequential(nn.SiLU(), nn.Dropout2d(0.3))
    return network.double()


def loss_of(network: nn.Module) -> Tensor:
    """Loss of one window, back-propagated; the random numbers are the same for each call."""
    window = make_window([3, 0, 5, 2])
    torch.manual_seed(1)
    predictions = network(window.images.double() / 255)
    sums = DetectionLoss(head_strides(network))(predictions, window.boxes_xyxy_px, window.classes, window.image_index)
    value = LossGains().apply(sums).sum()
    value.backward()
    return value.detach()


@pytest.mark.parametrize(
    "name",
    ["yolo11n", "yolov8n-p2", "yolov6n", "yolov5n", "yolo12n", "yolo11n with dropout", "fuses levels", "attention"],
)
def test_block__same_loss_gradients_buffers_and_random_numbers(name: str) -> None:
    plain = make_network(name)
    lean = copy_of(plain)
    apply_recompute(lean, "block")
    loss, next_random = loss_of(plain), torch.rand(1)
    lean_loss, lean_next_random = loss_of(lean), torch.rand(1)
    assert torch.equal(lean_loss, loss)
    assert relative_error(flat_gradient(lean), flat_gradient(plain)) <= 1e-10
    buffers = dict(plain.named_buffers())
    assert {name for name, buffer in lean.named_buffers() if not torch.equal(buffer, buffers[name])} == set()
    assert torch.equal(lean_next_random, next_random)


class Network(nn.Module):
    """A network of one layer, of which ``levels`` need to know no more than that."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(layer)


class Branches(nn.Module):
    """Takes and returns structures: views, a tensor without a gradient, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv(8, 8, 3)

    def forward(self, x: list[Any]) -> dict[str, Any]:
        (first, second), scale = x
        left, right = self.conv(first + second).chunk(2, 1)
        return {"parts": (left, right * scale), "largest": right.detach().amax(), "scale": scale}


class Momentum(nn.Module):
    """Its result depends on a buffer that it replaces, and on one that it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("count", torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean())
        return (self.conv(x) * self.count + self.mean).square()


class Noise(nn.Module):
    """Draws by a function of torch, not by a layer of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.rand_like(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norm(self.conv(x).flatten(2).permute(2, 0, 1))
        return self.attention(tokens, tokens, tokens)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.unit(x)) + x


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "in-place activation": lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(inplace=True)),
    "structures": Branches,
    "changing buffers": Momentum,
    "spectral norm": lambda: nn.Sequential(spectral_norm(nn.Conv2d(8, 8, 3)), nn.SiLU()),
    "unknown random layer": Noise,
    "random activation": lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.RReLU(), nn.Dropout(0.5)),
    "attention": Attention,
    "unit used twice": Twice,
}


def results_of(layer: Any, is_structured: bool) -> list[Tensor]:
    """Outputs of two calls, of which the second reads the first's where it can; gradients, buffers, random numbers."""
    torch.manual_seed(1)
    first, second = (torch.rand(2, 8, 6, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    outputs = list(tree_iter([layer([(first, second), 2.0]), layer([(second, first), 3.0])] if is_structured else []))
    if not is_structured:
        outputs = list(tree_iter([layer(first), layer(second * second)]))
    tensors = [output for output in outputs if isinstance(output, Tensor)]
    sum(tensor.sigmoid().square().sum() for tensor in tensors).backward()
    gradients = [tensor.grad for tensor in (first, second, *layer.parameters())]
    return [*tensors, *gradients, *layer.buffers(), torch.get_rng_state().double()]


@pytest.mark.parametrize("name", LAYERS)
def test_block__any_layer_called_twice(name: str) -> None:
    torch.manual_seed(0)
    plain = Network(LAYERS[name]()).double()
    lean = copy_of(plain)
    apply_recompute(lean, "block")
    expected = results_of(plain.model[0], name == "structures")
    torch.testing.assert_close(results_of(lean.model[0], name == "structures"), expected, rtol=1e-10, atol=1e-12)


def block(layer: nn.Module) -> Any:
    """A layer at level block."""
    network = Network(layer)
    apply_recompute(network, "block")
    return network.model[0]


def test_block__refuses_a_layer_that_changes_its_input() -> None:
    layer = block(nn.Sequential(nn.LeakyReLU(inplace=True), nn.Conv2d(8, 8, 1)))
    with pytest.raises(ValueError, match=r"^model\.recompute: layer 0 \(Sequential\): .* its input in place\. "):
        layer(torch.rand(1, 8, 4, 4, requires_grad=True) * 2)


def test_block__refuses_a_layer_that_passes_by_another_way() -> None:
    class Impatient(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) if self.calls == 1 else super().forward(x).exp()

    out = block(Impatient(nn.Conv2d(8, 8, 1)))(torch.rand(1, 8, 4, 4))
    with pytest.raises(ValueError, match=r"layer 0 \(Impatient\): .* it saved 2 tensors first and 3 when repeated"):
        out.sum().backward()


def test_block__an_error_in_the_repeat_restores_buffers_and_random_numbers() -> None:
    class Failing(Momentum):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out = super().forward(torch.rand_like(x) * x)
            if self.calls == 2:
                raise torch.OutOfMemoryError("injected")
            return out

    layer = block(Failing())
    out = layer(torch.rand(1, 8, 4, 4))
    before = [buffer.clone() for buffer in layer.buffers()] + [torch.get_rng_state()]
    with pytest.raises(torch.OutOfMemoryError):
        out.sum().backward()
    assert all(map(torch.equal, [*layer.buffers(), torch.get_rng_state()], before))


def test_block__a_later_layer_may_change_the_output_in_place() -> None:
    def gradient(first: Any, second: Any) -> Tensor:
        torch.manual_seed(1)
        x = torch.rand(1, 8, 4, 4, requires_grad=True)
        out = first(x)
        out += x
        second(torch.cat([out, out], 1)).square().sum().backward()
        return x.grad

    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.SiLU()), nn.Conv2d(16, 8, 1)
    expected = gradient(*layers)
    torch.testing.assert_close(gradient(*map(block, layers)), expected)


def test_block__later_layers_read_parts_of_the_output() -> None:
    class Parts(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.conv = Conv(8, 8, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            self.calls += 1
            return self.conv(x).chunk(2, 1)

    def gradients(parts: Any, wide: Any, narrow: Any) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        x = torch.rand(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
        left, right = parts(x)
        loss = wide(torch.cat([right, right, left], 1)).square().sum() + narrow(right.chunk(2, 1)[1]).square().sum()
        del left, right
        return torch.autograd.grad(loss, [x, wide.weight, narrow.weight])

    torch.manual_seed(0)
    layers = [layer.double() for layer in (Parts(), nn.Conv2d(12, 8, 1), nn.Conv2d(2, 8, 1))]
    expected = gradients(*layers)
    torch.testing.assert_close(gradients(*map(block, layers)), expected, rtol=1e-10, atol=1e-12)
    assert layers[0].calls == 1 + 2


@pytest.mark.parametrize("is_at_block", [False, True])
def test_block__notices_an_input_that_is_overwritten_before_the_repeat(is_at_block: bool) -> None:
    first, second = nn.Conv2d(8, 8, 1), block(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 1)))
    read = (block(first) if is_at_block else first)(torch.rand(1, 8, 4, 4, requires_grad=True))
    out = second(read)
    read.relu_()
    with pytest.raises(RuntimeError, match="was changed in place by a later layer"):
        out.sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_block__the_repeat_ends_before_the_last_output(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = block(nn.Sequential(Conv(8, 8, 1), Conv(8, 8, 1)))
    layer[1].bn.train(training)
    made: list[Tensor] = []
    monkeypatch.setattr(nn.SiLU, "forward", lambda *_: pytest.fail("not called by a unit"))
    monkeypatch.setattr(norm_act, "_silu_", lambda x: made.append(x) or nn.functional.silu(x, inplace=True))
    out = layer(torch.rand(2, 8, 4, 4))
    assert len(made) == 2
    out.sum().backward()
    assert len(made) == 2 + 2  # of the first unit: in the repeat, and again as the input of the second convolution


@pytest.mark.parametrize(("name", "num_calls"), [("in-place activation", 2), ("random activation", 1)])
def test_block__layers_that_draw_are_not_repeated_in_a_cuda_graph(
    name: str, num_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    torch.manual_seed(0)
    layer = LAYERS[name]()
    calls = []
    layer[0].register_forward_hook(lambda *_: calls.append(1))
    block(layer)(torch.rand(2, 8, 4, 4)).sum().backward()
    assert len(calls) == num_calls
