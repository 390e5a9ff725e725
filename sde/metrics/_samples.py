"""What every metric asks of its two samples, and the precision it works in."""

import torch
from torch import Tensor

TABLE = 2**20  # numbers in one table of pairs or projections: kept in the cache, however large the samples


def pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Two samples (n, \*D), (m, \*D) checked and flattened to float64 (n, d), (m, d)."""
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(x).__name__}: pass a data set's .x, or torch.as_tensor"
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}: pass {name}.float()")
        if x.ndim < 2 or x.shape[0] == 0 or x[0].numel() == 0:
            raise ValueError(
                f"{name} must be a batch (n, *D) of at least one point, got shape {tuple(x.shape)}: "
                f"numbers on a line are {name}[:, None]"
            )
        if not x.isfinite().all():
            bad = int((~x.flatten(1).isfinite().all(1)).sum())
            raise ValueError(
                f"{name} must be finite, got {bad} of {len(x)} rows with nan or inf: mend the sampler first"
            )
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"a and b must be points of one shape, got {tuple(a.shape)} and {tuple(b.shape)}: reshape one")
    if a.device != b.device:
        raise ValueError(f"a and b must be on one device, got {a.device} and {b.device}: pass b.to(a.device)")
    if a.device.type == "mps":  # it has no float64
        a, b = a.cpu(), b.cpu()
    return a.flatten(1).double(), b.flatten(1).double()


def result(value: Tensor, a: Tensor) -> Tensor:
    """The scalar on the device of `a`; float32 where there is no float64."""
    return value.to(a.device, torch.float32 if a.device.type == "mps" else torch.float64)


def at_least(name: str, value: float, least: float) -> None:
    """Refuses a value below `least`, infinite or NaN."""
    if not least <= value < float("inf"):
        raise ValueError(f"{name} must be at least {least}, got {value}: pass {name}={max(least, 2)}, say")


def row_chunks(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """Rows of x in chunks whose tables against `width` others hold at most TABLE numbers."""
    return x.split(max(1, TABLE // width))
