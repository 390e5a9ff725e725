"""TensorBoard as a callback of `fit`: training knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from sde.score import ScoreModel
from sde.train.run import Step


def tensorboard(
    folder: str | Path, images: Callable[[ScoreModel], Tensor] | None = None, every: int = 10
) -> Callable[[Step], None]:
    """A callback that writes loss, learning rate and samples a second to TensorBoard's files, and pictures if asked.

    A run that is resumed goes on in the same folder: what was written beyond the step it goes on from is hidden.

    Args:
        folder: What `tensorboard --logdir` is told.
        images: From the averaged model to images (N, C, H, W) in [-1, 1], a drawing of samples say; or None.
        every: Entries of the history between two pictures.

    Raises:
        ImportError: If tensorboard is not installed.

    Example:
        >>> import torch, sde
        >>> def grid(model: sde.ScoreModel) -> torch.Tensor:
        ...     return sde.sample(model, (16, 1, 8, 8), steps=10, generator=torch.Generator().manual_seed(0))
        >>> sde.fit(model, data, callback=sde.train.tensorboard("runs/digits", grid))  # doctest: +SKIP
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f'tensorboard is not installed ({error}): pip install "sde[images]"') from error
    writer: Any = None

    def write(step: Step) -> None:
        nonlocal writer
        h = step.history
        if step.main:
            writer = writer or SummaryWriter(str(folder), purge_step=step.step)
            for name, values in {"loss": h.loss, "lr": h.lr, "samples/s": h.throughput}.items():
                writer.add_scalar(name, values[-1], step.step)
        if images is not None and len(h.step) % every == 0:
            with step.averaged() as model:  # in every process, as a sharded network needs them all
                drawn = (images(model).float().cpu() + 1).div(2).clamp(0, 1)
            if step.main:
                writer.add_images("samples", drawn, step.step)
        if step.main:
            writer.flush()

    return write
