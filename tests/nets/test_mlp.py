"""The residual MLP: shapes, what it depends on, what it starts as, and what it refuses."""

import pytest
import torch

import sde
from sde.nets import MLP


def moved(net: MLP) -> MLP:
    """The net with weights as if trained: the last layer starts at zero."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return net


@pytest.mark.parametrize("shape", [(3, 1), (3, 2), (2, 1, 8, 8), (2, 3, 4, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_is_shaped_as_the_input(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype)
    net = MLP(dim=x[0].numel(), width=16).to(dtype)
    out = net(x, torch.zeros(len(x), dtype=dtype))
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert not out.any()  # an untrained model says what its parameterisation says without a network


def test_output_depends_on_state_time_and_label() -> None:
    net, x, c = moved(MLP(dim=2, width=16, classes=3)), torch.randn(4, 2), torch.linspace(-1, 1, 4)
    label = torch.tensor([0, 1, 2, 3])
    out = net(x, c, label)
    assert not torch.allclose(out, net(x + 0.1, c, label), atol=1e-4)
    assert not torch.allclose(out, net(x, c + 0.1, label), atol=1e-4)
    changed = (net(x, c, label.flip(0)) - out).abs().amax(1) > 1e-4
    assert changed.tolist() == [True] * 4
    torch.testing.assert_close(net(x, c), net(x, c, torch.full((4,), 3)))  # no label is the class "no class"


def test_no_sample_sees_its_neighbours() -> None:
    net, x, c = moved(MLP(dim=2, width=16)), torch.randn(4, 2), torch.linspace(-1, 1, 4)
    torch.testing.assert_close(net(x, c)[2:3], net(x[2:3], c[2:3]))


def test_non_contiguous_input_works() -> None:
    net, x = moved(MLP(dim=6, width=16)), torch.randn(4, 2, 3)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(net(turned, torch.zeros(4)), net(x, torch.zeros(4)))


def test_gradients_reach_every_weight() -> None:
    net = moved(MLP(dim=2, width=16, classes=3))
    net(torch.randn(8, 2), torch.randn(8), torch.arange(8) % 4).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_it_learns_a_curve() -> None:
    net = MLP(dim=1, width=32, depth=2)
    x = torch.linspace(-2, 2, 64)[:, None]
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(200):
        loss = (net(x, torch.zeros(64)) - torch.sin(2 * x)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"width": -1}, "width must be at least 1, got -1"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"classes": -1}, "classes must be 0 or more, got -1"),
        ({"features": 3}, "features must be even"),
        ({"time": "fft"}, "time must be one of fourier, sinusoidal, got 'fft'"),
    ],
)
def test_wrong_arguments_are_refused(keys: dict, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        MLP(**keys)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("label", "word"),
    [
        (torch.tensor([0, 1]), "label has shape (2,), expected (3,)"),
        (torch.zeros(3, 1, dtype=torch.int64), "label has shape (3, 1), expected (3,): one class to each sample"),
        (torch.tensor([0, 1, 4]), "label must be 0 to 3 (3: no class), got [0, 1, 4]"),
        (torch.tensor([0, -1, 2]), "label must be 0 to 3"),
    ],
)
def test_wrong_labels_are_refused(label: torch.Tensor, word: str) -> None:
    with pytest.raises(ValueError, match="label") as caught:
        MLP(dim=2, classes=3)(torch.zeros(3, 2), torch.zeros(3), label)
    assert word in str(caught.value)


def test_wrong_states_are_refused() -> None:
    with pytest.raises(ValueError, match="x has 3 coordinates a sample, this net was made for dim=2"):
        MLP(dim=2)(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="label was given to a net without classes"):
        MLP(dim=2)(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, dtype=torch.int64))


def test_any_net_of_the_same_call_serves_a_model() -> None:
    class Linear(torch.nn.Module):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return x * c[:, None]

    assert len(sde.checks.model(sde.ScoreModel(Linear(), sde.VP()))) == 3
