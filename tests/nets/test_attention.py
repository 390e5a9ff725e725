"""Attention against its formula, rotary positions by what they promise, and what stays precise in half precision."""

import pytest
import torch

from sde.nets.attention import Attention, Rotary, angles, rms, turned
from sde.nets.embed import Conditioning, Fourier, Sinusoidal


def test_attention_is_the_softmax_formula(generator: torch.Generator) -> None:
    layer, h = Attention(12, heads=3, bias=True).double(), torch.randn(2, 7, 12, generator=generator).double()
    out = torch.zeros(2, 7, 12, dtype=torch.float64)
    q, k, v = (h @ w.T + b for w, b in zip(layer.inward.weight.chunk(3), layer.inward.bias.chunk(3), strict=True))
    for i in range(3):
        s = slice(4 * i, 4 * i + 4)
        out[..., s] = torch.softmax(q[..., s] @ k[..., s].mT / 2, -1) @ v[..., s]
    torch.testing.assert_close(layer(h), out @ layer.outward.weight.T + layer.outward.bias)


def test_normed_queries_do_not_feel_the_scale_of_their_weights(generator: torch.Generator) -> None:
    layer, h = Attention(8, heads=2, normed=True), torch.randn(2, 5, 8, generator=generator)
    out = layer(h)
    with torch.no_grad():
        layer.inward.weight[:16] *= 7.0  # queries and keys
        torch.testing.assert_close(layer(h), out, atol=1e-4, rtol=1e-4)
        layer.inward.weight[16:] *= 7.0  # values
    assert not torch.allclose(layer(h), out, atol=1e-2)


def test_rms_divides_by_the_root_mean_square(generator: torch.Generator) -> None:
    x = torch.randn(3, 5, 4, generator=generator)
    torch.testing.assert_close(rms(x), torch.nn.functional.rms_norm(x, (4,), eps=1e-6))
    torch.testing.assert_close(rms(x, 1).square().mean(1), torch.ones(3, 4), atol=1e-4, rtol=1e-4)
    assert rms(x.bfloat16()).dtype == torch.bfloat16
    assert rms(1e30 * x.double()).isfinite().all()


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (2, 3)])
def test_products_of_rotary_positions_depend_on_the_difference_of_places(
    generator: torch.Generator, shift: tuple[int, int]
) -> None:
    n, head = 8, 16
    turn = angles(n, n, head)
    q, k = (torch.randn(1, 1, 1, head, generator=generator).expand(1, n * n, 1, head) for _ in range(2))
    product = (turned(q, turn)[0, :, 0] @ turned(k, turn)[0, :, 0].T).reshape(n, n, n, n)
    down, right = shift
    moved = product[down:, right:, down:, right:]
    torch.testing.assert_close(moved, product[: n - down, : n - right, : n - down, : n - right], atol=1e-4, rtol=1e-4)
    # and they do depend on it, along each axis
    assert (product[0, 0, 0, 0] - product[0, 0, 0, 1]).abs() > 1e-3
    assert (product[0, 0, 0, 0] - product[0, 0, 1, 0]).abs() > 1e-3
    torch.testing.assert_close(turned(q, turn).norm(dim=-1), q.norm(dim=-1))


def test_rotary_knows_other_grids_and_stays_precise() -> None:
    rotary = Rotary(4, 4, 8).to(torch.bfloat16)
    assert torch.equal(rotary(4, 4, torch.device("cpu")), angles(4, 4, 8))
    assert torch.equal(rotary(2, 5, torch.device("cpu")), angles(2, 5, 8))
    with pytest.raises(ValueError, match="a head's size must be a multiple of 4 for rotary positions, got 6"):
        angles(4, 4, 6)
    with pytest.raises(ValueError, match="heads must divide width=12, got 5"):
        Attention(12, heads=5)


@pytest.mark.parametrize("embed", [Fourier, Sinusoidal])
def test_time_features_are_those_of_full_precision_in_half(embed: type[Fourier]) -> None:
    c = torch.tensor([0.3, 417.0, 999.0])
    torch.testing.assert_close(embed(16).to(torch.bfloat16)(c), embed(16)(c))
    torch.testing.assert_close(embed(16).half()(c), embed(16)(c))


def test_conditioning_tells_times_and_classes_apart() -> None:
    net, c = Conditioning(16, 32, classes=3), torch.tensor([0.1, 0.5])
    label = torch.tensor([0, 2])
    out = net(c, label)
    assert (out - net(c + 0.2, label)).abs().amax(1).min() > 1e-3
    assert (out - net(c, label.flip(0))).abs().amax(1).min() > 1e-3
    torch.testing.assert_close(net(c), net(c, torch.tensor([3, 3])))
    with pytest.raises(ValueError, match=r"label must be 0 to 3 \(3: no class\), got \[0, 4\]"):
        net(c, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="label was given to a net without classes"):
        Conditioning(16, 32)(c, label)
    with pytest.raises(ValueError, match="classes must be 0 or more, got -1"):
        Conditioning(classes=-1)
    with pytest.raises(ValueError, match="time must be one of fourier, sinusoidal, got 'fft'"):
        Conditioning(time="fft")
