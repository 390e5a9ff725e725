r"""What image networks share: root-mean-square norms, attention over pixels or patches, and rotary positions.

    rms(x) = x / sqrt(mean x^2 + 1e-6),      attention(h) = V softmax(Q K' / sqrt(d))

for each of several heads of size d, with Q, K, V linear in h (B, N, width). Rotary positions turn each pair of numbers
of a query or key by an angle that is linear in its patch's place, so that Q K' depends on the difference of places:
half of the pairs turn with the row, half with the column.

Sums are taken in float32 at least, and results given in the input's dtype: under autocast nothing is promoted, which
would double what a GPU moves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde.nets.embed import Precise


def rms(x: Tensor, axis: int = -1) -> Tensor:
    """x over its root mean square along one axis.

    References:
        Zhang & Sennrich (2019), 1910.07467, without the gain.

    Example:
        >>> import torch
        >>> rms(torch.tensor([3.0, 4.0, 0.0, 0.0]))
        tensor([1.2000, 1.6000, 0.0000, 0.0000])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(axis, keepdim=True) + 1e-6)).to(x.dtype)


def angles(rows: int, columns: int, head: int, device: torch.device | None = None) -> Tensor:
    r"""Cosine and sine of the angles of rotary positions on a grid: (2, rows columns, head / 2), float32.

    Frequencies fall from 1 to 1/100 radians a patch.

    Raises:
        ValueError: If a head cannot be split into two axes of pairs.

    References:
        Su et al. (2021), 2104.09864, section 3; one half of the pairs for each axis of the image.

    Example:
        >>> angles(4, 4, head=8).shape
        torch.Size([2, 16, 4])
    """
    if head % 4:
        raise ValueError(
            f"a head's size must be a multiple of 4 for rotary positions, got {head}: width / heads = 64, say"
        )
    frequencies = torch.logspace(0, -2, head // 4, device=device)
    row, column = (torch.arange(n, device=device)[:, None] * frequencies for n in (rows, columns))
    grid = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], -1).flatten(0, 1)
    return torch.stack([grid.cos(), grid.sin()])


class Rotary(Precise):
    """The angles of a grid of rows × columns, kept for the one it is made for.

    Example:
        >>> import torch
        >>> Rotary(4, 4, head=8)(2, 6, torch.device("cpu")).shape
        torch.Size([2, 12, 4])
    """

    kept: Tensor

    def __init__(self, rows: int, columns: int, head: int) -> None:
        super().__init__()
        self.rows, self.columns, self.head = rows, columns, head
        self.register_buffer("kept", angles(rows, columns, head), persistent=False)

    def forward(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """`angles` of a grid."""
        same = (rows, columns) == (self.rows, self.columns)
        return self.kept if same else angles(rows, columns, self.head, device)


def turned(q: Tensor, turn: Tensor) -> Tensor:
    """Queries or keys (B, N, heads, d) with each pair (i, i + d / 2) turned by its angle; see `angles`.

    Example:
        >>> import torch
        >>> q = torch.randn(1, 16, 2, 8)
        >>> torch.allclose(turned(q, angles(4, 4, 8)).norm(), q.norm())  # a rotation
        True
    """
    cos, sin = turn[:, :, None].to(torch.promote_types(q.dtype, torch.float32))
    a, b = q.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(q.dtype)


class Attention(nn.Module):
    """Attention of every position to every other, (B, N, width) -> like it.

    Args:
        width: Numbers a position.
        heads: Divides width.
        normed: Queries and keys over their root mean square, so that no logit exceeds sqrt(width / heads).
        bias: Whether the linear layers have one.

    References:
        Vaswani et al. (2017), 1706.03762; Dehghani et al. (2023), 2302.05442, for the norm of queries and keys.

    Example:
        >>> import torch, sde
        >>> sde.nets.attention.Attention(32, heads=2)(torch.zeros(4, 16, 32)).shape
        torch.Size([4, 16, 32])
    """

    def __init__(self, width: int, heads: int = 1, normed: bool = False, bias: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide width={width}, got {heads}: heads={max(1, width // 64)}, say")
        self.width, self.heads, self.normed, self.bias = width, heads, normed, bias
        self.inward, self.outward = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)

    def forward(self, h: Tensor, turn: Tensor | None = None) -> Tensor:
        """The attention's output; with `turn`, of `angles`, at rotary positions."""
        q, k, v = self.inward(h).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if self.normed:
            q, k = rms(q), rms(k)
        if turn is not None:
            q, k = turned(q, turn), turned(k, turn)
        out = nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.outward(out.transpose(1, 2).flatten(2))
