"""Runs to draw, made by hand: these pictures need nothing but tensors."""

from types import SimpleNamespace

import pytest
import torch


def make_run(shape, steps=20, start=1.0, end=0.0, seed=0, noise=1.0):
    """A record of states (steps + 1, *shape): a Gaussian that shrinks from `noise` at t = 1 to a tenth at t = 0."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    t = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    scale = 0.1 + (noise - 0.1) * t.float()
    return SimpleNamespace(t=t, x=scale.view(-1, *[1] * len(shape)) * x)


@pytest.fixture
def run():
    """The function that makes a run."""
    return make_run
