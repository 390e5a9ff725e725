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
from sde.train.distributed import Alone
from sde.train.ema import Power
from sde.train.objectives import Objective
from sde.train.settings import DECAYS, LOW, Settings


def check(model: ScoreModel, data: Tensor, cond: Mapping[str, Tensor], coupling: object) -> None:
    """Model, data and conditioning fit together."""
    if not isinstance(model, ScoreModel):
        raise TypeError(f"model must be a ScoreModel, got {type(model).__name__}: train the model inside, then wrap it")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no parameter that requires a gradient: nothing to train")
    check_data(model, data)
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


def check_data(model: ScoreModel, data: Tensor) -> None:
    """Data are of a kind, a shape and on a device that the model takes."""
    images = isinstance(data, Tensor) and data.dtype is torch.uint8
    if not isinstance(data, Tensor) or not (images or data.is_floating_point()):
        kind = getattr(data, "dtype", type(data).__name__)
        raise TypeError(
            f"data must be a floating tensor (N, *D), or uint8 images (N, C, H, W), got {kind}: use "
            "torch.as_tensor(data).float()"
        )
    if images and data.ndim != 4:
        raise ValueError(
            f"uint8 data are image bytes (N, C, H, W), got shape {tuple(data.shape)}: reshape, or .float()"
        )
    if data.ndim < 2 or not data.numel():
        raise ValueError(f"data must be (N, *D) with N at least 1, got shape {tuple(data.shape)}")
    device = model.placement()[0]
    if device != data.device:
        raise ValueError(f"data lies on {data.device}, the model on {device}: use data.to({str(device)!r})")
    if not images and not bool(torch.isfinite(data).all()):
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
    x = data
    if data.dtype is torch.uint8:  # some of the images tell enough, and all of them as floats may not fit
        x = data[:: len(data) // 4096 + 1].float() / 127.5 - 1
    spread = float((x - model.mean.to(x)).square().mean().sqrt())
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


def check_settings(s: Settings, generator: Any) -> None:
    """The numbers and names of a run are in range."""
    whole("steps", s.steps, 1, say=5000)
    whole("batch", s.batch, 1, say=256)
    whole("warmup", s.warmup, 0, say=100)
    if not (math.isfinite(s.lr) and s.lr > 0):
        raise ValueError(f"lr must be positive and finite, got {s.lr}: pass lr=1e-3, say")
    if not (callable(s.decay) or s.decay in DECAYS):
        raise ValueError(f"decay must be one of {', '.join(DECAYS)} or a function (step, steps), got {s.decay!r}")
    if not isinstance(s.ema, Power) and not (isinstance(s.ema, int | float) and 0 <= s.ema < 1):
        raise ValueError(
            f"ema must lie in [0, 1), got {s.ema}: .999 averages over the last thousand steps, 0 is off; or pass "
            "sde.train.Power(0.05)"
        )
    _check_engine(s)
    _check_loss(s)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be one torch.Generator or None, got {type(generator).__name__}: use torch.Generator()"
        )


def _check_loss(s: Settings) -> None:
    if not isinstance(s.loss, Objective):
        raise TypeError(
            f"loss must be an objective, got {s.loss!r}: pass loss=sde.train.Sliced(), say, or weight=... for a weight"
        )
    if s.objective.twice and s.objective.coupling is not None:
        raise ValueError(
            f"coupling: {s.loss.kind} learns the score of independent noise, which coupled noise has not: leave it out"
        )
    if s.objective.twice and s.compile:
        raise ValueError(f"compile=True has no second derivative, which {s.loss.kind} needs: pass compile=False")


def _check_engine(s: Settings) -> None:
    whole("accumulate", s.accumulate, 1, say=1)
    if s.batch % s.accumulate:
        raise ValueError(f"batch must divide by accumulate, got {s.batch} and {s.accumulate}: equal parts are needed")
    if s.clip is not None and not s.clip > 0:
        raise ValueError(f"clip must be a positive norm or None, got {s.clip}: pass clip=1.0, say")
    if s.precision not in ("float32", *LOW):
        raise ValueError(f"precision must be float32, {' or '.join(LOW)}, got {s.precision!r}")
    if not isinstance(s.compile, bool | str):
        raise TypeError(f"compile must be True, False or a mode of torch.compile, got {s.compile!r}")
    if not 0 <= s.drop < 1:
        raise ValueError(f"drop must lie in [0, 1), got {s.drop}: .1 hides the label of every tenth sample")
    if isinstance(s.dequantize, str) or not 0 <= s.dequantize <= 255:
        raise ValueError(f"dequantize must be a width in bytes from 0 to 255, got {s.dequantize!r}: 1 for photographs")


def check_fits(s: Settings, model: ScoreModel, data: Tensor, cond: Mapping[str, Tensor]) -> None:
    """What the settings ask of model and data."""
    if s.flip and data.ndim != 4:
        raise ValueError(f"flip needs images (N, C, H, W), got data of shape {tuple(data.shape)}: pass flip=False")
    if s.channels_last and data.ndim != 4:
        raise ValueError(
            f"channels_last needs images (N, C, H, W), got data of shape {tuple(data.shape)}: leave it out"
        )
    if s.dequantize and data.dtype is not torch.uint8:
        raise ValueError(
            f"dequantize={s.dequantize} spreads bytes, got data of {data.dtype}: pass uint8 images, or add the noise "
            "yourself"
        )
    if s.drop and "label" not in cond:
        raise ValueError(f"drop={s.drop} hides labels, and there are none: pass cond={{'label': y}}, or drop=0")
    if s.drop and not getattr(model.net, "classes", 0):
        raise ValueError(f"drop={s.drop} needs a network with classes, whose index `classes` is none: or pass drop=0")
    wrapped = getattr(model.net, "_orig_mod", None)
    if s.compile and wrapped is not None:
        raise ValueError("compile got a compiled network: make the model with the plain one, which is what is saved")
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    if s.precision in LOW and kinds != {torch.float32}:
        have = ", ".join(sorted(map(str, kinds)))
        raise ValueError(f"precision={s.precision!r} keeps float32 weights, the model has {have}: pass model.float()")


def check_team(s: Settings, team: Alone) -> None:
    """What several processes ask of the settings."""
    if s.batch % (team.size * s.accumulate):
        parts = f"{team.size} processes" + (f" of {s.accumulate} parts" if s.accumulate > 1 else "")
        raise ValueError(f"batch must divide by {parts}, got {s.batch}: equal shares are needed")
    if s.objective.twice and team.size > 1:
        raise ValueError(f"loss={s.loss.kind} goes back through the network twice: train it in one process")
    if team.sharded and s.precision == "float16":
        raise ValueError("precision='float16' does not go with FSDP2: pass precision='bfloat16'")
