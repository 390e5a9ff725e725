"""A network in another dtype: weights alone, states and buffers stay as they are."""

import torch

import sde


def test_weights_alone_are_cast_and_the_original_is_left() -> None:
    net = sde.nets.MLP(dim=2, width=8, classes=3)
    torch.nn.init.normal_(net.outward.weight)
    half = sde.nets.Cast(net, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert {b.dtype for b in half.buffers()} == {torch.float32}
    x, c, label = torch.randn(50, 2), torch.randn(50), torch.arange(50) % 3
    with torch.no_grad():
        out, exact = half(x, c, label=label), net(x, c, label=label)
    assert out.dtype == x.dtype
    assert 0 < float((out - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_the_same_dtype_is_the_same_network() -> None:
    net = sde.nets.MLP(dim=2, width=8)
    torch.nn.init.normal_(net.outward.weight)
    x, c = torch.randn(5, 2), torch.randn(5)
    assert torch.equal(sde.nets.Cast(net, torch.float32)(x, c), net(x, c))


def test_a_model_with_it_samples_and_keeps_what_the_command_line_asks() -> None:
    net = sde.nets.MLP(dim=3, width=8, classes=4)
    model = sde.ScoreModel(sde.nets.Cast(net), sde.VP())
    assert (model.net.dim, model.net.classes) == (3, 4)
    assert sde.sample(model, (5, 3), 4).dtype == torch.float32
