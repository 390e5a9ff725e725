"""A network run in another floating type than what goes in and comes out: half precision for sampling."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Cast(nn.Module):
    """A copy of a network with weights in another dtype; states stay in theirs, so that a solver's sums lose nothing.

    Buffers (frequencies of time features, statistics) keep their dtype, as rounding them would change what they say.

    Args:
        net: The network, which is copied.
        dtype: Of weights and activations: torch.bfloat16, say.

    Attributes:
        state_dtype: The dtype of what goes in and comes out, that of the network before.

    Example:
        >>> import torch, sde
        >>> net = sde.nets.Cast(sde.nets.MLP(dim=2, width=8), torch.bfloat16)
        >>> net(torch.zeros(5, 2), torch.zeros(5)).dtype
        torch.float32
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.net, self.dtype = copy.deepcopy(net), dtype
        self.state_dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.get_default_dtype())
        for p in self.net.parameters():
            if p.is_floating_point():
                p.data = p.data.to(dtype)
        for name in ("dim", "channels", "size", "classes"):
            if hasattr(net, name):
                setattr(self, name, getattr(net, name))

    def forward(self, x: Tensor, c: Tensor, **cond: Any) -> Tensor:
        """What the network says of x, in the dtype of x."""
        return self.net(x.to(self.dtype), c, **cond).to(x.dtype)
