r"""What a step is made of beside the weights: data, noise, noise levels, labels.

Everything is drawn from the run's one generator: indices, times and masks for `CHUNK` steps at once, noise step by
step. Nothing waits for the device. A uint8 tensor is image bytes, which stay bytes until they are gathered:

    z = (flip(bytes) + dequantize u) / 127.5 - 1 - mean,    u uniform on [-1/2, 1/2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.shape import placed
from sde.train.loss import Rows, rows, shaped
from sde.train.settings import Settings
from sde.train.times import TimeTable, default_times

CHUNK = 32


class Plan(NamedTuple):
    """What is drawn ahead for one step: rows of the data, levels, which to flip and whose label to drop."""

    which: Tensor
    row: Rows
    flip: Tensor | None
    drop: Tensor | None


class Batch(NamedTuple):
    """Centred data z, noise eps, coefficients of the loss, conditioning."""

    z: Tensor
    eps: Tensor
    row: Rows
    cond: dict[str, Tensor]

    def parts(self, k: int) -> Iterator[Batch]:
        """The batch as k equal ones."""
        size = len(self.z) // k
        for i in range(k):
            yield self.share(slice(i * size, (i + 1) * size))

    def share(self, s: slice) -> Batch:
        """Some of its samples."""
        cond = {k: c[s] for k, c in self.cond.items()}
        return Batch(self.z[s], self.eps[s], Rows(*(c[s] for c in self.row)), cond)


class Draws:
    """The data on their device, and the one generator that draws from them."""

    def __init__(
        self,
        model: ScoreModel,
        data: Tensor,
        cond: Mapping[str, Tensor],
        settings: Settings,
        generator: torch.Generator,
        share: slice | None = None,
    ) -> None:
        self.model, self.cond, self.settings, self.generator = model, dict(cond), settings, generator
        self.share, self.shape = share, (settings.batch, *data.shape[1:])
        self.device, self.dtype = data.device, model.placement()[1]
        from sde.data.pixels import HALF  # here, as the data room is not imported before it is used

        self.unit = 1 / HALF
        self.bytes, self.classes = data.dtype is torch.uint8, getattr(model.net, "classes", 0)
        self.like = torch.empty((1,) * data.ndim, dtype=self.dtype)
        # A mean that is no mirror image of itself has to be taken off after the flip.
        self.centred = not (self.bytes or settings.flip)
        self.data = (data - model.mean.to(data)).to(self.dtype).contiguous() if self.centred else data.contiguous()
        self.fine = torch.promote_types(self.dtype, torch.float32 if self.bytes else data.dtype)
        self.shift = model.mean.to(self.device, self.fine) + (1 if self.bytes else 0)
        on_cuda = self.device.type == "cuda"
        self.channels_last = on_cuda if settings.channels_last is None else settings.channels_last
        self.channels_last = self.channels_last and data.ndim == 4
        self.objective = settings.objective
        self.table = TimeTable(self.objective.times or default_times(model.sde), model.sde, model.scale, self.device)
        self.begun = generator.get_state()
        """State of the generator where the chunk of the last step began."""

    def _uniform(self) -> Tensor:
        g, shape = self.generator, (CHUNK, self.settings.batch)
        return placed(torch.rand(shape, generator=g, device=g.device), self.device, torch.float32)

    def _chunk(self) -> list[Plan]:
        """What is drawn ahead for the next CHUNK steps."""
        n, g, s, objective = len(self.data), self.generator, self.settings, self.objective
        index = placed(torch.randint(n, (CHUNK, s.batch), generator=g, device=g.device), self.device, torch.int64)
        v = self._uniform()
        u = (torch.arange(s.batch, device=v.device) + v) / s.batch
        made = shaped(rows(self.model, self.table.at(u), objective.weight, objective.times), self.like)
        levels = [Rows(*columns) for columns in zip(*(c.unbind(0) for c in made), strict=True)]
        nothing = [None] * CHUNK
        flips = (self._uniform() < 0.5).unbind(0) if s.flip else nothing
        drops = (self._uniform() < s.drop).unbind(0) if s.drop else nothing
        return [Plan(*each) for each in zip(index.unbind(0), levels, flips, drops, strict=True)]

    def plans(self, step: int) -> list[Plan]:
        """The plans of the rest of a step's chunk; the step is counted from 0."""
        offset, g = step % CHUNK, self.generator
        if offset == 0:
            self.begun = g.get_state()
            return self._chunk()
        now = g.get_state()  # resumed inside a chunk: draw it again, then go on from the generator's own state
        g.set_state(self.begun)
        made = self._chunk()
        g.set_state(now)
        return made[offset:]

    def batch(self, plan: Plan) -> Batch:
        """Data, noise and conditioning of a step."""
        g, i = self.generator, plan.which
        eps = torch.randn(self.shape, generator=g, device=g.device)
        z = self.data[i] if self.centred else self._decoded(self.data[i], plan.flip)
        eps = eps.to(z) if eps.device == z.device else placed(eps, z.device, z.dtype)
        if self.channels_last:
            z, eps = (v.contiguous(memory_format=torch.channels_last) for v in (z, eps))
        if self.objective.coupling is not None:
            eps = self.objective.coupling(z, eps)
        cond = {k: c[i] for k, c in self.cond.items()}
        if plan.drop is not None:
            cond["label"] = cond["label"].masked_fill(plan.drop, self.classes)
        batch = Batch(z, eps, plan.row, cond)
        return batch if self.share is None else batch.share(self.share)

    def _decoded(self, x: Tensor, flip: Tensor | None) -> Tensor:
        if flip is not None:
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        like = torch.channels_last if self.channels_last else torch.contiguous_format
        x = x.to(self.fine, memory_format=like)
        if not self.bytes:
            return x.sub(self.shift).to(self.dtype)
        if self.settings.dequantize:
            g = self.generator
            u = placed(torch.rand(x.shape, generator=g, device=g.device), x.device, x.dtype)
            x.add_(u.sub_(0.5), alpha=self.settings.dequantize)
        return x.mul_(self.unit).sub(self.shift).to(self.dtype)
