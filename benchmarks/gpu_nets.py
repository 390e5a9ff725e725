"""The networks of `benchmarks.gpu`, ours and diffusers', called alike: net(x, c) -> like x."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sde
from benchmarks.peers import bring

DIT = {"S": (384, 6), "B": (768, 12)}


class Theirs(nn.Module):
    """A network of diffusers, which answers with an object, and asks for a class where it is a transformer."""

    def __init__(self, net: nn.Module, classes: bool) -> None:
        super().__init__()
        self.net, self.classes = net, classes

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Output shaped as x for a clock c (B,)."""
        more: dict[str, Any] = {}
        if self.classes:
            more["class_labels"] = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.net(x, timestep=c, return_dict=False, **more)[0].to(x.dtype)


def doubled(x: Tensor, scale_factor: float, mode: str) -> Tensor:
    """Nearest up-sampling by two, (B, C, H, W) -> (B, C, 2 H, 2 W), as copies."""
    if (scale_factor, mode) != (2.0, "nearest"):
        raise ValueError(f"doubled is nearest up-sampling by 2, got scale_factor={scale_factor}, mode={mode!r}")
    b, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)


class Functions:
    """torch.nn.functional as diffusers' up-sampling sees it: with `doubled` for `interpolate`.

    Compiled by torch 2.11 and 2.13, `interpolate` followed by concatenation and group norm gives gradients that are
    wrong by a third, and the network does not train; `tests/test_benchmark_quality.py` holds the two side by side.
    """

    interpolate = staticmethod(doubled)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.nn.functional, name)


def diffusers_unet(tiny: bool) -> nn.Module:
    """UNet2DModel in the shape of google/ddpm-cifar10-32, trainable when compiled."""
    importlib.import_module(f"{bring('diffusers').__name__}.models.upsampling").F = Functions()
    widths = (32, 32, 32, 32) if tiny else (128, 256, 256, 256)
    net = bring("diffusers").UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=widths,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=None,
        norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
    )  # fmt: skip
    return Theirs(net, classes=False)


def diffusers_dit(size: str, tiny: bool) -> nn.Module:
    """DiTTransformer2DModel of the widths of DiT-S or DiT-B, on 32×32 pixels by patches of 2."""
    width, heads = (64, 2) if tiny else DIT[size]
    net = bring("diffusers").DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=3, out_channels=3,
        num_layers=2 if tiny else 12, sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return Theirs(net, classes=True)


def ours(make: Callable[..., nn.Module], **changes: Any) -> Callable[[bool], nn.Module]:
    """A network of `sde.nets`, or a tiny one of the same kind."""

    def made(tiny: bool) -> nn.Module:
        small: dict[str, Any] = {"width": 32}
        small |= {"depth": 2, "heads": 2} if make.__name__ in "SBLXL" else {"blocks": 1}
        return make(**{**changes, **(small if tiny else {})})

    return made


U, D = sde.nets.UNet, sde.nets.DiT
NETWORKS: dict[str, Callable[[bool], nn.Module]] = {
    "unet": ours(U.cifar10),
    "unet-16": ours(U.cifar10, blocks=(3, 4, 3), attention=(16, 8), features=104),
    "unet-26": ours(U.cifar10, blocks=(2, 6, 3), features=48),
    "unet-group": ours(U.cifar10, norm="group"),
    "unet-concat": ours(U.cifar10, blocks=(2, 3, 1), merge="concat"),
    "unet-small": ours(U.cifar10_small),
    "ddpm": ours(U.ddpm_cifar10),
    "diffusers-unet": diffusers_unet,
    "dit-b": ours(D.B),
    "dit-b-plain": ours(D.B, positions="learned", normed=False),
    "dit-s": ours(D.S),
    "dit-s-plain": ours(D.S, positions="learned", normed=False),
    "diffusers-dit-b": lambda tiny: diffusers_dit("B", tiny),
    "diffusers-dit-s": lambda tiny: diffusers_dit("S", tiny),
}


def size(name: str, tiny: bool) -> tuple[float, float]:
    """Parameters in millions, and operations of one image's forward pass in units of 10^9, two to a multiplication."""
    net = NETWORKS[name](tiny).to("meta").eval()
    x, c = torch.zeros(1, 3, 32, 32, device="meta"), torch.zeros(1, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, c)
    return sum(p.numel() for p in net.parameters()) / 1e6, counter.get_total_flops() / 1e9
