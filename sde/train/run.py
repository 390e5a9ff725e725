r"""The state of a training run, and the steps that change it.

What does not depend on the network (times, indices, every coefficient of the loss) is drawn and computed for `CHUNK`
steps at once, so that a step is little more than the network's own forward, backward and optimizer. The weights that a
model is left with are their exponential moving average (EMA),

    ema <- ema + (1 - d_n) (theta - ema),        d_n = min(d, (1 + n) / (10 + n)),

and the learning rate rises linearly over `warmup` steps and falls to zero as half a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.train.couple import Coupling
from sde.train.loss import Rows, Weight, regression, rows, shaped
from sde.train.times import Times, TimeTable

CHUNK = 32


@dataclass
class History:
    """What training logged: what `sde.plot.history` draws.

    Attributes:
        step: Steps done at each entry.
        loss: Mean loss since the entry before.
        lr: Learning rate.
        seconds: Time since training began, of all its sessions.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float, lr: float, seconds: float) -> None:
        """One more entry."""
        self.step.append(step)
        self.loss.append(loss)
        self.lr.append(lr)
        self.seconds.append(seconds)


class Step(NamedTuple):
    """One step of training: its number (from 1), its loss (a tensor on the device) and its learning rate."""

    step: int
    loss: Tensor
    lr: float


class Run:
    """The state of a training run: everything that a resumed one needs to go on with the same bits."""

    def __init__(
        self,
        model: ScoreModel,
        data: Tensor,
        cond: Mapping[str, Tensor],
        steps: int,
        batch: int,
        lr: float,
        warmup: int,
        ema: float,
        weight: Weight,
        times: Times,
        coupling: Coupling | None,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
    ) -> None:
        self.model, self.cond, self.steps, self.batch = model, dict(cond), steps, batch
        self.lr, self.warmup, self.decay, self.weight, self.coupling = lr, warmup, ema, weight, coupling
        self.z = (data - model.mean.to(data)).to(model.placement()[1]).contiguous()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer or torch.optim.Adam(self.parameters, lr=lr, fused=self._fused())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.generator, self.step = generator, 0
        self.losses: list[Tensor] = []  # since the last entry of the history
        self.table = TimeTable(times, model.sde, model.scale, data.device)
        probe = weight(model.levels(self.table.at(torch.linspace(0, 1, 9, dtype=torch.float64))), model.scale)
        self.weighted = not bool(torch.allclose(probe, torch.ones_like(probe)))

    def _fused(self) -> bool:
        return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in self.parameters)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _chunk(self) -> tuple[list[Tensor], list[Rows]]:
        """Indices and loss coefficients of the next CHUNK steps."""
        n, g = len(self.z), self.generator
        index = torch.randint(n, (CHUNK, self.batch), generator=g, device=g.device).to(self.z.device)
        v = torch.rand(CHUNK, self.batch, generator=g, device=g.device).to(self.z.device)
        u = (torch.arange(self.batch, device=v.device) + v) / self.batch
        made = shaped(rows(self.model, self.table.at(u), self.weight), self.z)
        return list(index.unbind(0)), [Rows(*columns) for columns in zip(*(c.unbind(0) for c in made), strict=True)]

    def __iter__(self) -> Iterator[Step]:
        z, params, opt, weighted, generator = self.z, self.parameters, self.optimizer, self.weighted, self.generator
        values = [p.detach() for p in params]  # views of the weights that the optimizer changes in place
        while self.step < self.steps:
            offset = self.step % CHUNK
            if offset == 0:
                self.chunk_state = generator.get_state()
                index, coefficients = self._chunk()
            else:  # resumed inside a chunk: draw it again, then go on from the generator's own state
                now = generator.get_state()
                generator.set_state(self.chunk_state)
                index, coefficients = self._chunk()
                generator.set_state(now)
            for i, row in list(zip(index, coefficients, strict=True))[offset : offset + self.steps - self.step]:
                lr = self.rate(self.step)
                for group in opt.param_groups:
                    group["lr"] = lr
                eps = torch.randn(self.batch, *z.shape[1:], generator=generator, device=generator.device)
                x = z[i]
                eps = eps.to(x)
                if self.coupling is not None:
                    eps = self.coupling(x, eps)
                cond = {k: c[i] for k, c in self.cond.items()}
                loss = regression(self.model, x, eps, row, weighted, **cond)
                for p in params:
                    p.grad = None
                loss.backward()
                opt.step()
                self.step += 1
                if self.decay:
                    d = min(self.decay, (1 + self.step) / (10 + self.step))
                    torch._foreach_lerp_(self.ema, values, 1 - d)  # pyright: ignore[reportPrivateImportUsage]
                yield Step(self.step, loss.detach(), lr)

    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def finish(self) -> None:
        """Leave the averaged weights in the model."""
        if self.decay and self.step:
            with torch.no_grad():
                for p, e in zip(self.parameters, self.ema, strict=True):
                    p.copy_(e)
