"""How a training run went, and how much the gradients of its objective scatter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sde.plot.style import BLACK, BLUE, COLOURS, ORANGE, new_axes, style, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def history(h: Any, ax: Axes | None = None, window: float = 0.05, **kwargs: Any) -> Axes:
    """Loss over training steps: each recorded value faint, their running mean bold, the learning rate dashed.

    A denoising loss is an average over random times and noise, so its values scatter widely while its mean still falls:
    follow the bold line.

    Args:
        h: has `.step` and `.loss`, equally long; if it has them, `.lr` is drawn and the last of `.seconds` put in the
            title.
        ax: axes to draw on.
        window: width of the running mean, as a share of the run.
        **kwargs: for matplotlib's `plot`, for the bold line.

    Example:
        >>> from types import SimpleNamespace
        >>> ax = history(SimpleNamespace(step=[0, 1, 2], loss=[3.0, 2.0, 1.0], lr=[0.1, 0.1, 0.0]))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('step', 'loss')
    """
    step, loss = to_numpy(h.step), to_numpy(h.loss)
    if step.ndim != 1 or step.shape != loss.shape or not len(step):
        raise ValueError(
            f"h must have step and loss, equally long and not empty, got {step.shape} and {loss.shape}: train first"
        )
    if not 0 <= window < 1:
        raise ValueError(
            f"window must be a share of the run, 0 or more and below 1, got {window}: pass window=0.05, say"
        )
    with style():
        ax = new_axes(ax, "training", size=(5.2, 3.2))
        ax.plot(step, loss, color=BLUE, alpha=0.3, linewidth=0.8)
        ax.plot(step, _running_mean(loss, window), **{"color": BLUE, "linewidth": 2, "label": "loss", **kwargs})
        if np.nanmin(loss) > 0:
            ax.set_yscale("log")
        ax.set(xlabel="step", ylabel="loss")
        ax.set_xlim(step.min(), step.max() + (len(step) == 1))
        seconds = to_numpy(getattr(h, "seconds", [])).ravel()
        if len(seconds):
            ax.set_title(f"{int(step[-1])} steps in {seconds[-1]:.3g} s")
        rate = to_numpy(getattr(h, "lr", [])).ravel()
        if len(rate) == len(step):
            _learning_rate(ax, step, rate)
    return ax


def variances(v: Any, ax: Axes | None = None, log_time: bool = False, **kwargs: Any) -> Axes:
    """Variance of the gradient by time, a line for each objective; the band is two standard errors either side.

    Args:
        v: what `sde.train.gradient_variance` finds: `.t`, and `.variance` and `.variance_error` by name.
        ax: axes to draw on.
        log_time: logarithmic time, for variance-exploding SDEs.
        **kwargs: for matplotlib's `plot`, for all lines.

    Example:
        >>> from types import SimpleNamespace
        >>> found = SimpleNamespace(
        ...     t=[0.1, 0.9], variance={"sliced": [1.0, 2.0]}, variance_error={"sliced": [0.1, 0.2]}
        ... )
        >>> ax = variances(found)
        >>> ax.get_xlabel(), ax.get_yscale()
        ('time t', 'log')
    """
    t = to_numpy(v.t)
    if not v.variance or t.ndim != 1 or not len(t):
        raise ValueError(f"v must have times (T,) and a variance, got {t.shape} and {len(v.variance)}: measure some")
    with style():
        ax = new_axes(ax, "variances", size=(5.6, 3.4))
        marks = "os^Dvp*X"
        for i, (name, values) in enumerate(v.variance.items()):
            value, error = to_numpy(values), to_numpy(v.variance_error[name])
            look = {"color": COLOURS[i % len(COLOURS)], "marker": marks[i % len(marks)], "markersize": 4, "label": name}
            (line,) = ax.plot(t, value, **{**look, **kwargs})
            low = np.maximum(value - 2 * error, value / 10)  # a logarithmic axis has no place for 0
            ax.fill_between(t, low, value + 2 * error, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set_yscale("log")
        if log_time:
            ax.set_xscale("log")
        ax.set(xlabel="time t", ylabel="variance of the gradient\n(one datum, all weights)")
        ax.set_title("how much each objective's gradient scatters")
        ax.legend()
    return ax


def _learning_rate(ax: Axes, step: np.ndarray, rate: np.ndarray) -> None:
    twin = ax.twinx()
    twin.plot(step, rate, color=ORANGE, linestyle="--", linewidth=1.2)
    twin.set_ylabel("learning rate", color=BLACK)
    twin.set_ylim(0, 1.08 * max(rate.max(), 1e-30))
    twin.spines["right"].set_visible(True)
    twin.spines["right"].set_color(ORANGE)
    twin.tick_params(axis="y", color=ORANGE)
    twin.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)


def _running_mean(values: np.ndarray, window: float) -> np.ndarray:
    """Mean over a centred window that shrinks at both ends; what is not finite is left out."""
    half = round(window * len(values) / 2)
    finite = np.isfinite(values)
    total = np.concatenate([[0], np.cumsum(np.where(finite, values, 0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    k = np.arange(len(values))
    low, high = np.maximum(k - half, 0), np.minimum(k + half + 1, len(values))
    return (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
