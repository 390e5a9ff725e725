r"""Training of a classifier that reads noise: cross-entropy over noise levels.

    loss = E_t E_{(x0, k), eps} -log softmax(net(c_in u, c))_k,        u = alpha (x0 - mean) + sigma eps,

whose minimiser is log p_t(k | x) up to what is common to all classes: what classifier guidance needs. Data, noise,
noise levels, steps and averages are those of `fit`; the loss alone is another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde.score import Classifier
from sde.train import inputs
from sde.train.distributed import Alone
from sde.train.draws import Batch
from sde.train.fit import Callback, Session
from sde.train.run import History, Run
from sde.train.settings import Settings
from sde.train.times import LogNormal, Times, default_times

NOISY = LogNormal(mean=1.5, std=2.5)
"""Noisier than a score's: x0 moves by sigma^2 / alpha times the slope, so that high noise magnifies its error."""


class Lessons(Run):
    """A training run whose loss is cross-entropy."""

    def _backward(self, batch: Batch, k: int) -> Tensor:
        z, eps, row, cond = batch
        logits = self.net(row.a * z + row.b * eps, row.clock)
        if logits.ndim != 2 or len(logits) != len(z):
            raise ValueError(f"net returned shape {tuple(logits.shape)}: return logits of shape ({len(z)}, classes)")
        loss = torch.nn.functional.cross_entropy(logits, cond["label"]) / k
        loss.backward()
        return loss.detach()


def classify(
    classifier: Classifier,
    data: Tensor,
    label: Tensor,
    steps: int = 2000,
    *,
    batch: int = 256,
    lr: float = 1e-3,
    warmup: int = 100,
    ema: float = 0.999,
    times: Times | None = None,
    generator: torch.Generator | None = None,
    flip: bool = False,
    dequantize: float = 0.0,
    every: int = 100,
    callback: Callback | Sequence[Callback] | None = None,
    progress: bool = True,
) -> History:
    r"""Train a classifier on noised data; leaves the averaged weights in it, in eval mode.

    Args:
        classifier: `sde.Classifier`; make it with the data's mean and scale, and the SDE of the model to guide.
        data: (N, \*D), floating; or uint8 (N, C, H, W), bytes of images, which are brought to [-1, 1].
        label: Class of each datum, (N,) whole numbers from 0.
        steps: Optimizer steps in all.
        batch: Samples a step, drawn with replacement.
        lr: Peak learning rate; it rises over `warmup` steps and falls by a cosine.
        warmup: Steps over which it rises.
        ema: Decay of the average of the weights, 0 for none.
        times: Distribution of times. Default: as `fit`, but `LogNormal(1.5, 2.5)` where that is log-normal: guided
            samples suffer most from wrong slopes at high noise.
        generator: For data, times and noise.
        flip: Turn every other image left to right, at random.
        dequantize: Width, in bytes, of the cell that each byte is spread over: see `fit`.
        every: Steps between two entries of the history.
        callback: Called with each `Step` that is logged; one, or several.
        progress: A bar.

    Returns:
        The history, its loss the cross-entropy in nats: log(classes) for a classifier that knows nothing.

    Raises:
        TypeError, ValueError: If an argument does not fit; FloatingPointError if the loss is not finite.

    References:
        Dhariwal & Nichol (2021), 2105.05233, section 4.

    Example:
        >>> import torch, sde
        >>> x = torch.cat([torch.randn(100, 2) - 1, torch.randn(100, 2) + 1])
        >>> net = sde.nets.MLPClassifier(dim=2, classes=2, width=16)
        >>> classifier = sde.Classifier(net, sde.VP(), scale=float(x.std()))
        >>> label = torch.arange(2).repeat_interleave(100)
        >>> sde.train.classify(classifier, x, label, steps=20, every=10, progress=False).step
        [10, 20]
    """
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier must be a Classifier, got {type(classifier).__name__}: Classifier(net, sde)")
    inputs.whole("every", every, 1, say=100)
    if times is None and isinstance(default_times(classifier.sde), LogNormal):
        times = NOISY
    settings = Settings(
        steps=steps, batch=batch, lr=lr, warmup=warmup, ema=ema, times=times, flip=flip, dequantize=dequantize
    )
    inputs.check_settings(settings, generator)
    told: Any = classifier  # what a run asks of a model, a classifier has: net, sde, mean, scale, levels
    inputs.check_data(told, data)
    inputs.check_fits(settings, told, data, {})
    inputs.warn_of_scale(told, data, stacklevel=2)
    label = _checked(label, data, getattr(classifier.net, "classes", None))
    if generator is None:
        generator = torch.Generator(data.device).manual_seed(int(torch.randint(2**62, ())))
    calls: list[Callable[..., Any]] = [callback] if callable(callback) else list(callback or ())
    classifier.train()
    run = Lessons(told, data, {"label": label}, settings, None, generator, Alone())
    try:
        Session(run, None, every, every, calls, progress).through()
    finally:
        run.finish()
        classifier.eval()
    return run.history


def _checked(label: Tensor, data: Tensor, classes: int | None) -> Tensor:
    if not isinstance(label, Tensor) or label.is_floating_point() or label.shape != (len(data),):
        found = f"{label.dtype} of shape {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
        raise ValueError(f"label must be whole numbers ({len(data)},), one for each datum, got {found}")
    if int(label.min()) < 0 or (classes is not None and int(label.max()) >= classes):
        most = "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"label must be 0{most}, got {int(label.min())} to {int(label.max())}: number the classes from 0"
        )
    return label.to(data.device, torch.int64)
