"""The history of a training run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sde import plot


def test_history_draws_loss_mean_rate_and_seconds():
    step = torch.arange(0, 200, 2)
    loss = 1 + torch.rand(100)
    rate = torch.linspace(1e-3, 0, 100)
    ax = plot.history(SimpleNamespace(step=step, loss=loss.tolist(), lr=rate, seconds=step / 10), window=0.1)
    raw, mean = ax.lines
    np.testing.assert_array_equal(raw.get_xdata(), step)
    np.testing.assert_allclose(raw.get_ydata(), loss, rtol=1e-6)
    np.testing.assert_allclose(mean.get_ydata()[50], loss[45:56].mean(), rtol=1e-6)
    np.testing.assert_allclose(mean.get_ydata()[0], loss[:6].mean(), rtol=1e-6)
    assert ax.get_yscale() == "log"
    twin = next(other for other in ax.figure.axes if other is not ax)
    np.testing.assert_allclose(twin.lines[0].get_ydata(), rate, rtol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel(), twin.get_ylabel()) == ("step", "loss", "learning rate")
    assert ax.get_title() == "198 steps in 19.8 s"


def test_bare_histories_negative_losses_and_gaps_are_drawn():
    ax = plot.history(SimpleNamespace(step=[0, 1, 2, 3], loss=[-1.0, float("nan"), 3.0, 4.0]), window=0.5)
    assert ax.get_yscale() == "linear"
    assert len(ax.figure.axes) == 1
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [-1, 1, 3.5, 3.5])
    assert plot.history(SimpleNamespace(step=[0], loss=[1.0])).get_xlim() == (0, 1)


def test_wrong_histories_are_refused_by_name():
    for step, loss in (([], []), ([0, 1], [1.0])):
        with pytest.raises(ValueError, match="h must have step and loss, equally long and not empty"):
            plot.history(SimpleNamespace(step=step, loss=loss))
    with pytest.raises(ValueError, match="window must be a share of the run"):
        plot.history(SimpleNamespace(step=[0], loss=[1.0]), window=1.5)


def test_variances_draw_a_line_with_its_band_for_each_objective():
    found = SimpleNamespace(
        t=torch.tensor([0.1, 0.5, 0.9]),
        variance={"denoising": torch.tensor([4.0, 2.0, 1.0]), "implicit": torch.tensor([1.0, 2.0, 3.0])},
        variance_error={"denoising": torch.tensor([0.1, 0.2, 9.0]), "implicit": torch.full((3,), 0.1)},
    )
    ax = plot.variances(found, log_time=True)
    assert [line.get_label() for line in ax.lines] == ["denoising", "implicit"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.1, 0.5, 0.9], rtol=1e-6)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [4, 2, 1])
    edge = ax.collections[0].get_paths()[0].vertices[:, 1]  # two errors either side, and never below 0
    assert {3.8, 4.2, 19.0, 0.1} <= {round(float(y), 4) for y in edge}
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "time t")
    assert "variance of the gradient" in ax.get_ylabel()


def test_variances_of_nothing_are_refused_by_name():
    for t, variance in (([0.1], {}), ([], {"denoising": []}), (0.1, {"denoising": [1.0]})):
        with pytest.raises(ValueError, match=r"v must have times \(T,\) and a variance"):
            plot.variances(SimpleNamespace(t=t, variance=variance, variance_error=variance))
