"""The diffusion transformer: published sizes, patches, positions, what it refuses."""

from typing import Any

import pytest
import torch

from sde.nets import DiT
from sde.nets.dit import _Layer

TINY: dict[str, Any] = {"channels": 1, "size": 8, "width": 16, "depth": 1, "heads": 2, "features": 8}


@pytest.mark.parametrize(("name", "millions"), [("S", 32.96), ("B", 130.5), ("L", 458.1), ("XL", 675.1)])
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        net = getattr(DiT, name)(size=32, patch=2, channels=4, classes=1000)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_any_patch_that_divides_the_size(patch: int, positions: str) -> None:
    net = DiT(**TINY, patch=patch, positions=positions)
    assert net(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)


def test_patches_come_back_where_they_were(generator: torch.Generator) -> None:
    net = DiT(**{**TINY, "channels": 3, "width": 12, "heads": 3}, patch=2)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        torch.nn.init.eye_(net.inward.weight)
        torch.nn.init.zeros_(net.inward.bias)
        torch.nn.init.eye_(net.outward.weight)
    out, one = net(x, torch.zeros(2)), x.unfold(2, 2, 2).unfold(3, 2, 2)  # blocks are the identity at the start
    scale = one.square().mean((1, 4, 5), keepdim=True).sqrt()
    torch.testing.assert_close(out.unfold(2, 2, 2).unfold(3, 2, 2), one / scale, atol=1e-4, rtol=1e-4)


def test_rotary_positions_serve_other_sizes() -> None:
    torch.manual_seed(0)
    net = DiT(**TINY, patch=2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    big = DiT(**{**TINY, "size": 16}, patch=2)
    big.load_state_dict(net.state_dict())
    x, c = torch.randn(2, 1, 12, 4), torch.zeros(2)
    torch.testing.assert_close(net(x, c), big(x, c))


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_places_matter(positions: str) -> None:
    torch.manual_seed(0)
    net = DiT(**TINY, patch=4, positions=positions).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.5 * torch.randn_like(p))
    x, c = torch.randn(1, 1, 8, 8).double(), torch.zeros(1).double()
    swapped = torch.cat([x[..., 4:, :], x[..., :4, :]], 2)  # the upper patches below the lower
    out = net(swapped, c)
    assert not torch.allclose(torch.cat([out[..., 4:, :], out[..., :4, :]], 2), net(x, c), atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"patch": 3}, "size must be a multiple of patch=3, got 8"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"heads": 3}, "heads must divide width=16, got 3"),
        ({"heads": 8}, "a head's size must be a multiple of 4 for rotary positions, got 2"),
        ({"positions": "sines"}, "positions must be one of rotary, learned, got 'sines'"),
        ({"classes": -1}, "classes must be 0 or more, got -1"),
    ],
)
def test_wrong_arguments_are_refused(keys: dict, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        DiT(**{**TINY, **keys})
    assert word in str(caught.value)


def test_wrong_images_are_refused() -> None:
    c = torch.zeros(2)
    with pytest.raises(ValueError, match="height and width of x must be a multiple of patch=2, got 7"):
        DiT(**TINY, patch=2)(torch.zeros(2, 1, 8, 7), c)
    with pytest.raises(ValueError, match=r"x must be \(B, 1, H, W\), got shape \(2, 3, 8, 8\)"):
        DiT(**TINY, patch=2)(torch.zeros(2, 3, 8, 8), c)
    with pytest.raises(ValueError, match=r"x has 8×4 patches, learned positions were made for 4×4"):
        DiT(**TINY, patch=2, positions="learned")(torch.zeros(2, 1, 16, 8), c)


def test_a_layer_is_its_formula(generator: torch.Generator) -> None:
    layer = _Layer(16, 2, 4, normed=True)
    with torch.no_grad():
        layer.condition.weight.normal_(generator=generator)
        layer.condition.bias.normal_(generator=generator)
    h, e = torch.randn(3, 5, 16, generator=generator), torch.randn(3, 16, generator=generator)
    a1, b1, g1, a2, b2, g2 = (layer.condition.weight @ e.T + layer.condition.bias[:, None]).T[:, None].split(16, -1)
    norm = torch.nn.RMSNorm(16, 1e-6, elementwise_affine=False)
    middle = h + g1 * layer.attention((1 + a1) * norm(h) + b1)
    out = middle + g2 * layer.down(torch.nn.GELU("tanh")(layer.up((1 + a2) * norm(middle) + b2)))
    torch.testing.assert_close(layer(h, e, None), out, atol=1e-4, rtol=1e-4)
