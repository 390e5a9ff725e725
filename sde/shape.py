r"""Shapes and precision: the only reshape of the package.

A time t has shape () or (B,), a state x has shape (B, \*D). A coefficient c(t) therefore has the shape of t, and
`expand(c, x)` lets it multiply x. Schedule arithmetic runs in float64 wherever the device has it (`as_time`), and is
rounded to the state's dtype by the one operation that combines it with a state (`scaled`, `plus`, `lincomb`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde import fused

Coefficient = float | Tensor
"""A number, or a tensor that already broadcasts against the state."""

ROUNDING = 1e-14
"""A number of this size beside 1 is what float64 arithmetic leaves of 0."""

_ZERO = torch.zeros((), dtype=torch.float32, device="cpu")


def as_time(t: float | Tensor) -> Tensor:
    """Time as a tensor in the best precision of its device: float64, or float32 on MPS, which has no float64.

    Args:
        t: A number, or a tensor of shape () or (B,).

    Example:
        >>> as_time(0.5)
        tensor(0.5000, dtype=torch.float64)
    """
    if isinstance(t, Tensor):
        return t.float() if t.device.type == "mps" else t.double()
    return torch.tensor(float(t), dtype=torch.float64)


def placed(c: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Tensor on a device, in a dtype, without a wait on the way from the CPU to a GPU.

    Example:
        >>> placed(torch.zeros(3), torch.device("cpu"), torch.float64).dtype
        torch.float64
    """
    if c.device == device:
        return c.to(dtype)
    if c.device.type != "cpu" or device.type != "cuda" or c.requires_grad:
        return c.to(device, dtype)
    if c.ndim == 0:  # a number goes along with its kernel
        return torch.full((), c.item(), dtype=dtype, device=device)
    if torch.cuda.is_current_stream_capturing():  # what a graph copies from must stay where it is
        raise RuntimeError("a CUDA graph cannot copy from the CPU: make the tensor on the GPU")
    return c.to(dtype).pin_memory().to(device, non_blocking=True)  # from other memory the copy is waited for


def expand(c: Coefficient, x: Tensor) -> Coefficient:
    r"""Coefficient of shape () or (B,), shaped to multiply a state.

    Args:
        c: A number, or a tensor of shape () or (B,).
        x: State of shape (B, \*D).

    Returns:
        c itself, or c as (B, 1, ..., 1).

    Raises:
        ValueError: If c is (B',) and x has another batch size.

    Example:
        >>> expand(torch.ones(5), torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 1, 1, 1])
    """
    if not isinstance(c, Tensor) or c.ndim == 0:
        return c
    if c.ndim != 1 or c.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"t has shape {tuple(c.shape)} but x has shape {tuple(x.shape)}: pass t of shape () or ({x.shape[0]},)"
        )
    return c.reshape(c.shape + (1,) * (x.ndim - 1))


def scaled(c: Coefficient, x: Tensor) -> Tensor:
    """Product c x in the dtype of x; x itself where c is 1 but for rounding.

    Example:
        >>> scaled(torch.tensor([2.0], dtype=torch.float64), torch.ones(1, 2)).dtype
        torch.float32
    """
    if isinstance(c, Tensor):
        return x * (c.to(x.dtype) if c.ndim else c)
    if abs(c - 1.0) < ROUNDING:
        return x
    # 0 + c x: for x * c a float32 kernel on the CPU first makes a tensor of the number, which costs as much again.
    return torch.add(_ZERO, x, alpha=c) if x.dtype is torch.float32 and x.is_cpu else x * c


def plus(y: Tensor, c: Coefficient, x: Tensor) -> Tensor:
    """Sum y + c x in the dtype of y: one kernel where c is a number.

    Example:
        >>> plus(torch.ones(1, 2), 0.5, torch.ones(1, 2))
        tensor([[1.5000, 1.5000]])
    """
    return y + scaled(c, x) if isinstance(c, Tensor) else torch.add(y, x, alpha=c)


def lincomb(a: Coefficient, u: Tensor, b: Coefficient, w: Tensor) -> Tensor:
    """Linear combination a u + b w in the dtype of u: two kernels, fewer where a coefficient is 0 or 1.

    Example:
        >>> lincomb(2.0, torch.ones(2), 0.5, torch.ones(2))
        tensor([2.5000, 2.5000])
    """
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return scaled(a, u) + scaled(b, w)
    if abs(a) < ROUNDING * abs(b):  # an output that is made again from its own endpoints
        return scaled(b, w)
    if b == 0.0:
        return scaled(a, u)
    return total((a, u), (b, w)) if fused.on else torch.add(scaled(a, u), w, alpha=b)


def total(*terms: tuple[float, Tensor]) -> Tensor:
    """Sum of numbers times tensors: a kernel for each term, or one for all in a run that is recorded.

    Example:
        >>> total((1.0, torch.ones(2)), (2.0, torch.ones(2)), (3.0, torch.ones(2)))
        tensor([6., 6.])
    """
    if fused.on and (found := fused.combination([(c, x) for c, x in terms if c])) is not None:
        return found
    (c, x), *rest = terms
    y = scaled(c, x)
    for c, x in rest:
        if c:
            y = torch.add(y, x, alpha=c)
    return y


def sum_event(x: Tensor) -> Tensor:
    r"""Sum over everything but the batch: (B, \*D) to (B,).

    Example:
        >>> sum_event(torch.ones(4, 3, 2))
        tensor([6., 6., 6., 6.])
    """
    return x.flatten(1).sum(1)
