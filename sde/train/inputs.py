"""What `fit` refuses before it starts: arguments that would fail late, silently or not at all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sde.forward import ScalarSDE
from sde.score import ScoreModel


def check(model: ScoreModel, data: Tensor, cond: Mapping[str, Tensor], coupling: object) -> None:
    """Model, data and conditioning fit together."""
    if not isinstance(model, ScoreModel):
        raise TypeError(f"model must be a ScoreModel, got {type(model).__name__}: train the model inside, then wrap it")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no parameter that requires a gradient: nothing to train")
    _check_data(model, data)
    for name, c in cond.items():
        if not isinstance(c, Tensor) or c.ndim == 0:
            raise TypeError(
                f"cond {name!r} must be a tensor of one row for each datum, got {type(c).__name__}: {c!r:.60}"
            )
        if len(c) != len(data):
            raise ValueError(f"cond {name!r} has {len(c)} rows for {len(data)} data: one for each is needed")
        if c.device != data.device:
            raise ValueError(f"cond {name!r} lies on {c.device}, data on {data.device}: use .to({str(data.device)!r})")
    if coupling is not None and not isinstance(model.sde, ScalarSDE):
        raise ValueError(
            f"coupling needs a scalar SDE, as a coupled model of {type(model.sde).__name__} has no velocity: use Flow, "
            "or coupling=None"
        )


def _check_data(model: ScoreModel, data: Tensor) -> None:
    if not isinstance(data, Tensor) or not data.is_floating_point():
        kind = getattr(data, "dtype", type(data).__name__)
        raise TypeError(f"data must be a floating tensor (N, *D), got {kind}: use torch.as_tensor(data).float()")
    if data.ndim < 2 or not data.numel():
        raise ValueError(f"data must be (N, *D) with N at least 1, got shape {tuple(data.shape)}")
    device = model.placement()[0]
    if device != data.device:
        raise ValueError(f"data lies on {data.device}, the model on {device}: use data.to({str(device)!r})")
    if not bool(torch.isfinite(data).all()):
        raise ValueError(f"data holds {int((~torch.isfinite(data)).sum())} values that are not finite: clean it first")
    mean = model.mean.shape
    try:
        fits = torch.broadcast_shapes(mean, data.shape[1:]) == data.shape[1:]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"data have shape {tuple(data.shape)}, the model's mean {tuple(mean)}: make it with mean=data.mean(0)"
        )


def warn_of_scale(model: ScoreModel, data: Tensor, stacklevel: int) -> None:
    """Warn where the data are far from the mean and scale that the model was told."""
    spread = float((data - model.mean.to(data)).square().mean().sqrt())
    if not 1 / 3 < spread / model.scale < 3:
        warnings.warn(
            f"data lie {spread:.3g} from the model's mean in root mean square, its scale is {model.scale:.3g}: make it "
            "with ScoreModel(..., mean=data.mean(0), scale=float(data.std()))",
            stacklevel=stacklevel + 1,
        )


def whole(name: str, value: Any, least: int, say: int) -> None:
    """A whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}: pass {name}={say}, say")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}: pass {name}={say}, say")


def check_numbers(steps: Any, batch: Any, warmup: Any, lr: Any, ema: Any, generator: Any) -> None:
    """The numbers of a run are in range."""
    whole("steps", steps, 1, say=5000)
    whole("batch", batch, 1, say=256)
    whole("warmup", warmup, 0, say=100)
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be positive and finite, got {lr}: pass lr=1e-3, say")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {ema}: .999 averages over the last thousand steps, 0 is off")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be one torch.Generator or None, got {type(generator).__name__}: use torch.Generator()"
        )
