r"""Linear combinations of tensors as one kernel of a GPU, by Triton where it is installed.

A step is c_0 x + c_1 F + c_2 z + ...: n terms cost torch n kernels, each of which reads and writes the whole state, and
on a small state each takes as long as a layer of the network. Here they are one. Starting a kernel of Triton's from
Python costs more than starting torch's own, so that this pays where a run is recorded once and replayed
(`sde.solvers.capture`), and is on there alone.
"""

# pyright: reportMissingParameterType=false, reportInvalidTypeForm=false
from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

MOST = 8
"""Terms of one kernel."""

on = False
"""Whether `sde.shape` asks here first."""


@contextmanager
def fusing() -> Iterator[None]:
    """Combinations are made here, where they can be.

    Example:
        >>> from sde import fused
        >>> with fused.fusing():
        ...     fused.on
        True
    """
    global on
    before, on = on, True
    try:
        yield
    finally:
        on = before


def combination(terms: Sequence[tuple[float, Tensor]]) -> Tensor | None:
    """Sum of numbers times tensors in one kernel, summed in float32; None where this is no case for it.

    Example:
        >>> combination([(2.0, torch.ones(2)), (3.0, torch.ones(2))]) is None  # they are not on a GPU
        True
    """
    if len(terms) < 2 or not _alike([x for _, x in terms]) or not installed():
        return None
    if len(terms) > MOST:
        part = combination(terms[:MOST])
        return part if part is None else combination([(1.0, part), *terms[MOST:]])
    numbers, tensors = zip(*terms, strict=True)
    first, spare = tensors[0], MOST - len(terms)
    out, size, block = torch.empty_like(first), first.numel(), 1024
    # Terms that are not there are named, and not read.
    arguments = (*tensors, *[first] * spare, *numbers, *[0.0] * spare)
    _kernel()[(-(-size // block),)](out, *arguments, size, N=len(terms), BLOCK=block)
    return out


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether one walk through memory passes all of them, element by element, and none asks for a gradient."""
    first = tensors[0]
    if not first.is_cuda or first.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    layout = (first.shape, first.stride(), first.dtype, first.device)
    dense = first.is_contiguous() or (first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last))
    if not dense or not 0 < first.numel() < 2**31:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return all((x.shape, x.stride(), x.dtype, x.device) == layout for x in tensors[1:])


@cache
def installed() -> bool:
    """Whether Triton is there.

    Example:
        >>> installed() in (True, False)
        True
    """
    return importlib.util.find_spec("triton") is not None


tl: Any = None
"""triton.language, once a kernel is made."""


@cache
def _kernel() -> Any:
    global tl
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language  # pyright: ignore[reportMissingImports]

    tl = triton.language
    return triton.jit(_total, do_not_specialize=["size"])


# Triton compiles this function; its parameters are pointers, numbers and constants.
def _total(out, x0, x1, x2, x3, x4, x5, x6, x7, c0, c1, c2, c3, c4, c5, c6, c7, size, N: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip  # noqa: E501
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < size
    total = c0 * tl.load(x0 + i, mask=there).to(tl.float32)
    if N > 1:
        total += c1 * tl.load(x1 + i, mask=there).to(tl.float32)
    if N > 2:
        total += c2 * tl.load(x2 + i, mask=there).to(tl.float32)
    if N > 3:
        total += c3 * tl.load(x3 + i, mask=there).to(tl.float32)
    if N > 4:
        total += c4 * tl.load(x4 + i, mask=there).to(tl.float32)
    if N > 5:
        total += c5 * tl.load(x5 + i, mask=there).to(tl.float32)
    if N > 6:
        total += c6 * tl.load(x6 + i, mask=there).to(tl.float32)
    if N > 7:
        total += c7 * tl.load(x7 + i, mask=there).to(tl.float32)
    tl.store(out + i, total, mask=there)
