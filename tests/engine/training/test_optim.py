from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.training.optim import OptimizerConfig, build_optimizer, clip_gradients, parameter_groups, step_if
from models.network import build_network


def test_parameter_groups__yolo11l_counts_match_reference() -> None:
    groups = parameter_groups(build_network("yolo11l", 80))
    counts = {name: (len(group), sum(p.numel() for p in group)) for name, group in groups.items()}
    # The reference counts the fixed DFL projection (1 tensor, 16 elements) in the decay group; ours leaves it out.
    assert counts == {"decay": (173, 25_309_376), "norm": (167, 31_168), "bias": (173, 31_600)}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_build_optimizer__decays_only_weights_and_scales_with_batch(name: str) -> None:
    network = build_network("yolo11n", 2)
    optimizer = build_optimizer(network, OptimizerConfig(name=name, weight_decay=0.01), batch_size=32)
    assert {g["name"]: g["weight_decay"] for g in optimizer.param_groups} == {"decay": 0.005, "norm": 0, "bias": 0}


@pytest.mark.parity
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_build_optimizer__steps_match_reference(name: str) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    theirs.load_state_dict(ours.state_dict())
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.05)
    optimizer = build_optimizer(ours, config, batch_size=64)
    decayed = [theirs[0].weight]
    plain = [theirs[0].bias, theirs[1].weight, theirs[1].bias]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    if name == "adamw":
        reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.937, 0.999), foreach=False)
    else:
        reference = torch.optim.SGD(groups, lr=0.01, momentum=0.937, nesterov=True, foreach=False)
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def give_gradients(network: nn.Module, value: float | None = None) -> None:
    for p in network.parameters():
        p.grad = torch.randn_like(p) if value is None else torch.full_like(p, value)


def without_state(name: str, network: nn.Module, momentum: float = 0.937) -> torch.optim.Optimizer:
    """The same optimizer as torch makes it: its first step creates its state."""
    optimizer = build_optimizer(network, OptimizerConfig(name=name, lr=0.01, momentum=momentum), 64)
    optimizer.state.clear()
    return optimizer


@pytest.mark.parametrize(("name", "momentum"), [("adamw", 0.937), ("sgd", 0.937), ("sgd", 0.0)])
def test_build_optimizer__steps_are_those_of_state_made_in_the_first_step(name: str, momentum: float) -> None:
    ours, theirs = small_network(), small_network()
    optimizer = build_optimizer(ours, OptimizerConfig(name=name, lr=0.01, momentum=momentum), batch_size=64)
    reference = without_state(name, theirs, momentum)
    for _ in range(3):
        give_gradients(ours)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_build_optimizer__has_the_state_of_every_trained_parameter_at_once(name: str) -> None:
    network = small_network()
    network[0].weight.requires_grad_(False)
    optimizer = build_optimizer(network, OptimizerConfig(name=name), batch_size=64)
    assert set(optimizer.state) == {p for p in network.parameters() if p.requires_grad}
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    assert all(value.count_nonzero() == 0 and value.dtype == torch.float32 for value in tensors)
    give_gradients(network)
    optimizer.step()
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert all(ours is theirs for ours, theirs in zip(tensors, after, strict=True))
    assert all(value.count_nonzero() > 0 for value in tensors)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_build_optimizer__resumes_from_a_checkpoint_without_state(name: str) -> None:
    """Earlier versions saved none before the first step."""
    network = small_network()
    optimizer = build_optimizer(network, OptimizerConfig(name=name), batch_size=64)
    optimizer.load_state_dict(without_state(name, small_network()).state_dict())
    assert set(optimizer.state) == set(network.parameters())
    give_gradients(network, float("inf"))
    step_if(torch.tensor(False), optimizer, optimizer.step)
    assert all(value.count_nonzero() == 0 for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("num_skipped", [1, 3])
def test_step_if__skipped_first_steps_leave_no_trace(name: str, num_skipped: int) -> None:
    """Torch's fused SGD keeps uninitialized memory as its momentum."""
    ours, theirs = small_network(), small_network()
    before = [p.clone() for p in ours.parameters()]
    optimizers = [build_optimizer(network, OptimizerConfig(name=name), 64) for network in (ours, theirs)]
    for _ in range(num_skipped):
        give_gradients(ours, float("nan"))
        step_if(torch.tensor(False), optimizers[0], optimizers[0].step)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), before, strict=True))
    for state in optimizers[0].state.values():
        assert all(value.count_nonzero() == 0 for value in state.values())
    for network, optimizer in zip((ours, theirs), optimizers, strict=True):
        give_gradients(network, 0.5)
        step_if(torch.tensor(True), optimizer, optimizer.step)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(("max_norm", "expected"), [(1.0, 1.0), (100.0, 13.0), (0.0, 13.0)])
def test_clip_gradients__clips_the_joint_norm(max_norm: float, expected: float) -> None:
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    norm = clip_gradients(gradients, max_norm)
    assert float(norm) == 13.0
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_clip_gradients__norm_tells_of_a_single_bad_element(bad: float) -> None:
    assert not clip_gradients([torch.ones(3), torch.tensor([bad])], 10.0).isfinite()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_step_if__false_leaves_weights_and_state_alone(name: str) -> None:
    network = nn.Conv2d(1, 1, 1)
    optimizer = build_optimizer(network, OptimizerConfig(name=name), batch_size=64)

    def step(finite: bool, gradient: float) -> torch.Tensor:
        for p in network.parameters():
            p.grad = torch.full_like(p, gradient)
        step_if(torch.tensor(finite), optimizer, optimizer.step)
        return network.weight.detach().clone()

    first = step(True, 1.0)
    assert torch.equal(step(False, float("nan")), first)
    after_skip = step(True, 1.0)
    assert not torch.equal(after_skip, first)
    for state in optimizer.state.values():
        assert all(torch.isfinite(value).all() for value in state.values() if torch.is_tensor(value))
        assert "step" not in state or float(state["step"]) == 2


def test_optimizer_config__rejects_values_out_of_range() -> None:
    for key, value in (("lr", 0), ("weight_decay", -1), ("momentum", 1.0), ("max_grad_norm", -1)):
        with pytest.raises(ValueError, match=f"model.optimizer.{key}: {value}: must"):
            OptimizerConfig(**{key: value})
