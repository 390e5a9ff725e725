"""The U-Net: published sizes, sizes of images, how it shrinks and grows them, what it refuses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sde.nets import UNet
from sde.nets.blocks import Block, Down, Up, doubled, halved, narrow


def size(net: torch.nn.Module, side: int) -> tuple[float, float]:
    """Parameters in millions; operations of an image in 10^9."""
    net = net.to("meta").eval()
    x, c = torch.zeros(1, 3, side, side, device="meta"), torch.zeros(1, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, c)
    return sum(p.numel() for p in net.parameters()) / 1e6, counter.get_total_flops() / 1e9


def test_the_ddpm_shape_has_the_parameters_and_operations_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers.models.unets.unet_2d")
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(
            sample_size=32, layers_per_block=2, block_out_channels=(128, 256, 256, 256), attention_head_dim=None,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"), downsample_padding=0,
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        ours = UNet.ddpm_cifar10()
    (parameters, operations), (p, ops) = size(theirs, 32), size(ours, 32)
    assert p == parameters  # 35.746307M
    assert ops == pytest.approx(operations, rel=0.005)  # ends are filled up to eight channels
    lean, lean_ops = size(UNet.cifar10(), 32)
    assert lean == pytest.approx(parameters, rel=0.005)
    assert lean_ops == pytest.approx(operations, rel=0.025)


def test_published_and_shipped_sizes() -> None:
    with torch.device("meta"):
        adm, plus, small = UNet.adm_64(), UNet.ddpmpp_cifar10(), UNet.cifar10_small()
    assert size(adm, 64) == pytest.approx((295.9, 219.5), rel=1e-3)
    assert size(plus, 32)[0] == pytest.approx(55.7, rel=0.02)  # theirs has less attention on the way out
    assert size(small, 32)[0] < 8
    for net, side in ((UNet.digits(), 8), (UNet.mnist(), 28)):
        assert sum(p.numel() for p in net.parameters()) < 1e6
        assert net(torch.zeros(2, 1, side, side), torch.zeros(2), torch.tensor([0, 9])).shape == (2, 1, side, side)
    assert UNet.mnist(classes=0).classes == 0


@pytest.mark.parametrize("sides", [(8, 8), (4, 12), (32, 16)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_other_sizes_than_its_own_work(sides: tuple[int, int], channels: int) -> None:
    net = UNet(channels, 8, 16, (1, 1, 2), 1, attention=(8, 2), head=16, features=8)
    assert net(torch.zeros(2, channels, *sides), torch.zeros(2)).shape == (2, channels, *sides)


def test_a_shift_by_its_coarsest_pixel_shifts_the_output() -> None:
    torch.manual_seed(0)
    net = UNet(1, 32, 8, (1, 2), 1, features=8).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[..., 28:34, 28:34] = torch.randn(6, 6, dtype=torch.float64)
    c = torch.zeros(1, dtype=torch.float64)
    out, shifted = net(x, c), net(x.roll((2, 4), (2, 3)), c)
    torch.testing.assert_close(shifted[..., 16:48, 16:48], out.roll((2, 4), (2, 3))[..., 16:48, 16:48])


def test_halving_and_doubling_are_the_pool_and_the_repetition(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 6, generator=generator)
    torch.testing.assert_close(halved(x), torch.nn.functional.avg_pool2d(x, 2))
    assert torch.equal(doubled(x), torch.nn.functional.interpolate(x, scale_factor=2))


@pytest.mark.parametrize(("inward", "outward"), [(3, 16), (16, 3), (8, 8), (5, 1)])
def test_an_end_filled_with_zeros_is_the_convolution(inward: int, outward: int, generator: torch.Generator) -> None:
    conv, x = torch.nn.Conv2d(inward, outward, 3, padding=1), torch.randn(2, inward, 5, 5, generator=generator)
    torch.testing.assert_close(narrow(conv, x), conv(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("modulate", [True, False])
def test_a_block_is_its_formula(modulate: bool, generator: torch.Generator) -> None:
    block = Block(8, 12, 4, "group", modulate, dropout=0.0)
    h, e = torch.randn(2, 8, 5, 5, generator=generator), torch.randn(2, 4, generator=generator)
    with torch.no_grad():
        block.two.weight.normal_(generator=generator)
    silu, r = torch.nn.functional.silu, block.one(torch.nn.functional.silu(block.norm_one(h)))
    m = block.condition(e)[..., None, None]
    r = block.norm_two(r) * (1 + m[:, :12]) + m[:, 12:] if modulate else block.norm_two(r + m)
    torch.testing.assert_close(block(h, e), block.skip(h) + block.two(silu(r)), atol=1e-4, rtol=1e-4)
    assert [block.norm_one.num_groups, block.norm_two.num_groups] == [2, 2]


def test_dropout_drops_in_training_alone() -> None:
    net = UNet(1, 8, 16, (1,), 1, dropout=0.5, features=8)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    x, c = torch.randn(1, 1, 8, 8), torch.zeros(1)
    assert not torch.equal(net(x, c), net(x, c))
    net.eval()
    assert torch.equal(net(x, c), net(x, c))


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"size": 30}, "size must be a multiple of 4 to be halved 2 times, got 30: pad it to 32"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"width": -8}, "width must be at least 1, got -8"),
        ({"multipliers": ()}, "multipliers must be one positive number a level"),
        ({"blocks": (1, 2)}, "blocks must be a positive number, or one for each of 3 levels, got (1, 2)"),
        ({"blocks": 0}, "blocks must be a positive number"),
        ({"attention": (10,)}, "attention must name sizes of levels, [32, 16, 8], got (10,)"),
        ({"attention": (8,), "head": 48}, "head=48 does not divide"),
        ({"norm": "batch"}, "norm must be one of pixel, group, got 'batch'"),
        ({"merge": "sum"}, "merge must be one of add, concat, got 'sum'"),
        ({"resample": "fir"}, "resample must be one of shuffle, block, conv, got 'fir'"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"classes": -1}, "classes must be 0 or more, got -1"),
        ({"time": "fft"}, "time must be one of fourier, sinusoidal, got 'fft'"),
    ],
)
def test_wrong_arguments_are_refused(keys: dict, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        UNet(**keys)
    assert word in str(caught.value)


def test_wrong_images_are_refused() -> None:
    net, c = UNet(3, 8, 16, (1, 2), 1, features=8), torch.zeros(2)
    with pytest.raises(ValueError, match=r"height and width of x must be a multiple of 2 .*, got 7: pad it to 8"):
        net(torch.zeros(2, 3, 8, 7), c)
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\), got shape \(2, 1, 8, 8\)"):
        net(torch.zeros(2, 1, 8, 8), c)
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\), got shape \(2, 64\)"):
        net(torch.zeros(2, 64), c)
    with pytest.raises(ValueError, match="label was given to a net without classes"):
        net(torch.zeros(2, 3, 8, 8), c, torch.zeros(2, dtype=torch.int64))


def test_shuffling_down_and_up_loses_nothing(generator: torch.Generator) -> None:
    x, e = torch.randn(2, 3, 4, 6, generator=generator), torch.zeros(2, 4)
    down, up = Down(3, 12, "shuffle"), Up(12, 3, "shuffle")
    for layer in (down.mix, up.mix):
        assert layer is not None
        torch.nn.init.eye_(layer.weight)
    torch.testing.assert_close(up(down(x, e), e), x)
    torch.testing.assert_close(down(x, e)[:, :3], x[:, :, ::2, ::2])  # the upper left of each 2×2


@pytest.mark.parametrize("merge", ["add", "concat"])
def test_a_level_joins_what_it_kept_to_what_comes_from_within(merge: str, generator: torch.Generator) -> None:
    level = UNet(1, 8, 8, (1, 2), 1, merge=merge, features=8).level
    h, e = torch.randn(2, 8, 4, 4, generator=generator), torch.randn(2, 32, generator=generator)
    assert isinstance(level.deeper, torch.nn.Module)
    assert level.down is not None
    assert level.up is not None
    kept = level.inward[0](h, e)
    inner = level.up(level.deeper(level.down(kept, e), e), e)
    if merge == "add":
        out = level.outward[0](kept + inner, e)
    else:
        out = level.outward[1](torch.cat([level.outward[0](torch.cat([inner, kept], 1), e), h], 1), e)
    torch.testing.assert_close(level(h, e), out)
    assert inner.abs().max() > 1e-3
