"""From data to a score model, and from noise back to data: the same lines for points and for images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sde


def learn(data: Tensor, net: torch.nn.Module, **settings: Any) -> tuple[sde.ScoreModel, sde.History]:
    """Train a network to point from noise back to data."""
    vp = sde.VP()  # how data become noise
    model = sde.ScoreModel(net, vp, mean=data.mean(0), scale=float(data.std()))  # what a network says of the way back
    history = sde.fit(model, data, **settings)  # learn to say it
    return model, history


def draw(model: sde.Model, noise: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """From the same noise by two ways: predictor and corrector add noise on the way, the ODE adds none."""
    both = sde.PredictorCorrector(sde.ReverseDiffusion(), sde.AnnealedLangevin())
    by_sde = sde.sample(model, x=noise, steps=60, solver=both, generator=generator)
    by_ode = sde.sample(model, x=noise, steps=60)
    return {"predictor–corrector": by_sde, "probability-flow ODE": by_ode}


@torch.no_grad()
def follow(model: sde.Model, noise: Tensor, steps: int, generator: torch.Generator) -> dict[str, sde.Trajectory]:
    """The ways themselves, recorded: the reverse SDE and the probability-flow ODE from the same noise."""
    times = sde.grids.data_scaled(model.sde, steps, scale=model.data_scale())
    by_sde = sde.trajectory(sde.ReverseSDE(model, eta=1), noise, times, sde.EulerMaruyama(), generator)
    by_ode = sde.trajectory(sde.ReverseSDE(model, eta=0), noise, times, sde.Heun())
    return {"reverse SDE": sde.record(by_sde, every=2), "probability-flow ODE": sde.record(by_ode, every=2)}
