"""U-Net and DiT: what both promise of shapes, dtypes, compilation, beginnings, and independence of a batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import sde
from sde.nets import DiT, UNet

U: dict[str, Any] = {"channels": 2, "size": 8, "width": 16, "multipliers": (1, 2), "blocks": 1, "head": 16}
U["features"] = 8
D: dict[str, Any] = {"channels": 2, "size": 8, "patch": 2, "width": 16, "depth": 2, "heads": 2, "features": 8}
GROUP: dict[str, Any] = {"norm": "group", "merge": "concat"}
NETS: dict[str, Callable[..., nn.Module]] = {
    "lean": lambda **k: UNet(**{**U, "attention": (8, 4), "blocks": (1, 2), **k}),
    "ddpm": lambda **k: UNet(**{**U, **GROUP, "attention": (4,), "resample": "conv", "modulate": False, **k}),
    "adm": lambda **k: UNet(**{**U, **GROUP, "attention": (8,), "resample": "block", **k}),
    "pixel, concat, shuffle": lambda **k: UNet(**{**U, "merge": "concat", **k}),
    "group, add, block": lambda **k: UNet(**{**U, "norm": "group", "resample": "block", **k}),
    "pixel, add, conv": lambda **k: UNet(**{**U, "resample": "conv", **k}),
    "dit": lambda **k: DiT(**{**D, **k}),
    "dit, learned": lambda **k: DiT(**{**D, "positions": "learned", "normed": False, "patch": 4, **k}),
}


@pytest.fixture(params=NETS)
def make(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return NETS[request.param]


def moved(net: nn.Module) -> nn.Module:
    """The net with weights as if trained: what starts at zero does not stay there."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return net.eval()


def batch(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 8, 8, generator=g), torch.linspace(-1, 1, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_untrained_it_is_zero_and_shaped_as_its_input(make: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    net, (x, c) = make().to(dtype), batch()
    out = net(x.to(dtype), c)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert not out.any()


def test_an_untrained_model_predicts_what_its_parameterisation_says_without_a_network() -> None:
    for make in (NETS["lean"], NETS["dit"]):
        model = sde.ScoreModel(make(), sde.EDM(), "edm", scale=0.5)
        x, sigma = batch()[0], 0.7
        torch.testing.assert_close(model(x, sigma).x0, x * 0.25 / (0.25 + sigma**2))  # EDM's c_skip


def test_output_depends_on_state_time_and_label(make: Callable[..., nn.Module]) -> None:
    net, (x, c) = moved(make(classes=3)), batch()
    label = torch.tensor([0, 1, 3])
    out = net(x, c, label)
    assert (net(x + 0.1, c, label) - out).abs().amax((1, 2, 3)).min() > 1e-4
    assert (net(x, c + 0.1, label) - out).abs().amax((1, 2, 3)).min() > 1e-4
    assert (net(x, c, (label + 1) % 4) - out).abs().amax((1, 2, 3)).min() > 1e-4
    torch.testing.assert_close(net(x, c), net(x, c, torch.full((3,), 3)))  # no label is the class "no class"


def test_no_sample_sees_its_neighbours(make: Callable[..., nn.Module]) -> None:
    net, (x, c) = moved(make()), batch()
    out, turn = net(x, c), torch.tensor([2, 0, 1])
    torch.testing.assert_close(net(x[1:2], c[1:2]), out[1:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(x[turn], c[turn]), out[turn], atol=1e-4, rtol=1e-4)


def test_every_pixel_can_matter_to_every_other(make: Callable[..., nn.Module]) -> None:
    net, (x, c) = moved(make()), batch(1)
    x.requires_grad_()
    net(x, c)[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0].abs().sum(0) > 0).float().mean() > 0.9


def test_channels_last_and_non_contiguous_input_change_nothing(make: Callable[..., nn.Module]) -> None:
    net, (x, c) = moved(make()), batch()
    out = net(x, c)
    last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), c)  # pyright: ignore
    torch.testing.assert_close(last, out, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(x.mT.contiguous().mT, c), out, atol=1e-4, rtol=1e-4)


def test_half_precision_is_near(make: Callable[..., nn.Module]) -> None:
    net, (x, c) = moved(make(classes=3)), batch()
    out = net(x, c, torch.tensor([0, 1, 2]))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(x, c, torch.tensor([0, 1, 2]))
    half = net.to(torch.bfloat16)(x.bfloat16(), c, torch.tensor([0, 1, 2]))
    assert mixed.dtype == torch.float32
    for other in (mixed, half.float()):
        assert (other - out).norm() < 0.05 * out.norm()


@pytest.mark.parametrize("name", [n if n in ("lean", "dit") else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_a_compiled_net_is_one_graph_at_any_batch(name: str) -> None:
    torch._dynamo.reset()
    net, graphs = moved(NETS[name](classes=3)), CompileCounter()
    whole = torch.compile(net, backend=graphs, fullgraph=True)
    for n in (2, 3, 5):
        x, c = batch(n)
        label = torch.arange(n) % 4
        torch.testing.assert_close(whole(x, c, label), net(x, c, label))
    assert graphs.frame_count == 2  # one for the first batch, one for all others


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lean", "adm", "dit"])
def test_its_backward_pass_is_compiled_too(name: str) -> None:
    torch._dynamo.reset()
    net, (x, c) = moved(NETS[name]()), batch()
    grads = []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        net.zero_grad()
        run(x, c).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-3)


def test_gradients_reach_every_weight_within_three_steps(make: Callable[..., nn.Module]) -> None:
    net, (x, c) = make(classes=3), batch(4)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    steps = 1 if isinstance(net, UNet) else 3  # adaLN-zero: the last layer, then the gates, then what they open
    for _ in range(steps + 1):
        optimizer.zero_grad()
        (net(x, c, torch.arange(4)) - x).square().mean().backward()
        optimizer.step()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert dead == []


def test_a_checkpoint_brings_it_back(make: Callable[..., nn.Module]) -> None:
    net, (x, c) = moved(make(classes=3)), batch()
    again = sde.train.rebuild(sde.train.describe(net))
    assert type(again) is type(net)
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again.eval()(x, c), net(x, c))


@pytest.mark.parametrize("name", ["lean", pytest.param("adm", marks=pytest.mark.slow), "dit"])
def test_it_learns_an_image(name: str) -> None:
    torch.manual_seed(0)
    net, (x, c) = NETS[name](), batch(4)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(80):
        loss = (net(x, c) - x.flip(3)).square().mean()  # which no local rule does
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lean", "adm", "dit", "dit, learned"])
def test_on_a_gpu_it_is_compiled_in_half_precision(name: str) -> None:
    torch._dynamo.reset()
    net, (x, c) = moved(NETS[name]()).cuda(), (v.cuda() for v in batch(8))
    out = net(x, c)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    whole = torch.compile(net, fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16):
        half = whole(x.to(memory_format=torch.channels_last), c)
    half.square().sum().backward()
    assert (half - out).norm() < 0.05 * out.norm()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
