r"""The state of a training run, and the steps that change it.

What does not depend on the network is made by `sde.train.draws`, for many steps at once, so that a step is little more
than the network's own forward, backward and optimizer. Nothing in it waits for the device: the loss stays there until
it is logged. A batch in k parts makes the gradient of the whole one, loss_i / k summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.train.distributed import Alone, local
from sde.train.draws import Batch, Draws
from sde.train.ema import Averages
from sde.train.loss import rows
from sde.train.settings import LOW, Settings


@dataclass
class History:
    """What training logged: what `sde.plot.history` draws.

    Attributes:
        step: Steps done at each entry.
        loss: Mean loss since the entry before.
        lr: Learning rate.
        seconds: Time since training began, of all its sessions.
        throughput: Samples a second since the entry before, without what logging itself and callbacks took.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float, lr: float, seconds: float, throughput: float) -> None:
        """One more entry."""
        self.step.append(step)
        self.loss.append(loss)
        self.lr.append(lr)
        self.seconds.append(seconds)
        self.throughput.append(throughput)


class Step(NamedTuple):
    """One step of training.

    Attributes:
        step: Its number, from 1.
        loss: A tensor on the device: to read it is to wait for the device.
        lr: Learning rate.
        run: The run it belongs to.
    """

    step: int
    loss: Tensor
    lr: float
    run: Run

    @property
    def main(self) -> bool:
        """Whether this is the process that writes: the only one, or the first of several."""
        return self.run.team.main

    @property
    def history(self) -> History:
        """What was logged so far."""
        return self.run.history

    def averaged(self) -> AbstractContextManager[ScoreModel]:
        """The model as the run would leave it now: averaged weights, in eval mode.

        Weights and average change places while the context is open, so that nothing is copied.

        Example:
            >>> import torch, sde
            >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
            >>> def grid(step: sde.train.Step) -> None:
            ...     with step.averaged() as now:
            ...         print(step.step, sde.sample(now, (4, 2), steps=5, progress=False).shape)
            >>> history = sde.fit(model, torch.randn(100, 2), steps=10, every=5, callback=grid, progress=False)
            5 torch.Size([4, 2])
            10 torch.Size([4, 2])
        """
        return self.run.averaged()


class Run:
    """The state of a training run: everything that a resumed one needs to go on with the same bits."""

    def __init__(
        self,
        model: ScoreModel,
        data: Tensor,
        cond: Mapping[str, Tensor],
        settings: Settings,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
        team: Alone,
    ) -> None:
        self.model, self.settings, self.team, self.step, self.history = model, settings, team, 0, History()
        team.level(model)
        self.draws = Draws(model, data, cond, settings, team.same(generator), team.share(settings.batch))
        if self.draws.channels_last and not team.sharded:  # a shard has no layout of its own
            model.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer or torch.optim.Adam(self.parameters, lr=settings.lr, fused=self._fused())
        net, self.optimizer = team.wrap(model.net, optimizer)
        self.wrapped, self.net = net, _compiled(net, settings.compile)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averages = Averages(settings.ema, self.parameters)
        self.swapped = False
        self.losses: list[Tensor] = []  # since the last entry of the history
        device, low = self.draws.device.type, LOW.get(settings.precision)
        self.cast = torch.autocast(device, low) if low else None
        self.scaler = torch.amp.GradScaler(device) if low is torch.float16 else None
        u = torch.linspace(0, 1, 9, dtype=torch.float64)
        self.loss = settings.objective.of
        probe = rows(model, self.draws.table.at(u), settings.objective.weight, settings.objective.times).root.square()
        self.weighted = not bool(torch.allclose(probe, torch.ones_like(probe)))
        self.states, self.drawn = global_states(self.draws.device), False

    def _fused(self) -> bool:
        return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in self.parameters)

    def __iter__(self) -> Iterator[Step]:
        optimizer, draws, settings = self.optimizer, self.draws, self.settings
        values = [local(p.detach()) for p in self.parameters]  # views: the optimizer changes the weights in place
        with _tuned(draws.device):
            while self.step < settings.steps:
                for plan in draws.plans(self.step)[: settings.steps - self.step]:
                    lr = settings.rate(self.step)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    loss = self._gradient(draws.batch(plan))
                    self._descend()
                    self.step += 1
                    self.averages.update(values, self.step)
                    yield Step(self.step, loss, lr, self)

    def _gradient(self, batch: Batch) -> Tensor:
        """Leave the gradient in the parameters; the loss."""
        for p in self.parameters:
            p.grad = None
        k = self.settings.accumulate
        if k == 1:
            return self._backward(batch, 1)
        *most, last = batch.parts(k)
        with self.team.apart(self.wrapped):
            losses = [self._backward(part, k) for part in most]
        return torch.stack([*losses, self._backward(last, k)]).sum()

    def _backward(self, batch: Batch, k: int) -> Tensor:
        """Add a k-th of the gradient of the mean loss of a batch; a k-th of that loss."""
        z, eps, row, cond = batch
        if self.cast is None:
            loss = self.loss(self.net, z, eps, row, self.weighted, self.draws.generator, **cond)
        else:
            with self.cast:
                loss = self.loss(self.net, z, eps, row, self.weighted, self.draws.generator, **cond)
        if k > 1:
            loss = loss / k
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return loss.detach()

    def _descend(self) -> None:
        """One step of the optimizer."""
        clip, scaler = self.settings.clip, self.scaler
        if clip is not None:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, clip, foreach=True)
        if scaler is None:
            self.optimizer.step()
        else:  # leaves out a step whose gradient overflowed, and scales the next ones less
            scaler.step(self.optimizer)
            scaler.update()

    @contextmanager
    def averaged(self) -> Iterator[ScoreModel]:
        """The model with the averaged weights: see `Step.averaged`."""
        training, self.swapped = self.model.training, True
        self._swap()
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train(training)
            self._swap()
            self.swapped = False

    def _swap(self) -> None:
        self.team.settle(self.model)
        for means in self.averages.means[:1]:
            for i, p in enumerate(self.parameters):
                if self.team.sharded:  # the gathering looks into the memory itself
                    ours, its = local(p.detach()), local(means[i])
                    kept = ours.clone()
                    ours.copy_(its)
                    its.copy_(kept)
                else:
                    p.data, means[i] = means[i], p.data

    def finite(self) -> bool:
        """Whether every weight is a number."""
        values = [v for v in (local(p.detach()) for p in self.parameters) if v.numel()]
        largest = torch._foreach_norm(values, float("inf"))  # pyright: ignore[reportPrivateImportUsage]
        good = torch.stack([v.isfinite() for v in largest]).all()
        return float(self.team.mean(good.float())) == 1.0

    def finish(self) -> None:
        """Leave the averaged weights in the model."""
        if self.step:
            self.team.settle(self.model)
            with torch.no_grad():
                for means in self.averages.means[:1]:
                    for p, e in zip(self.parameters, means, strict=True):
                        p.copy_(e)


@contextmanager
def _tuned(device: torch.device) -> Iterator[None]:
    """On a GPU cuDNN tries its algorithms for convolutions once, and takes the quickest: shapes stay the same."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _compiled(net: torch.nn.Module, how: bool | str) -> Callable[..., Any]:
    """The network as it is called: the plain one stays as it is, for checkpoints and callbacks."""
    if how is False:
        return net
    made: Callable[..., Any] = torch.compile(net, mode=how if isinstance(how, str) else None)
    return made


def global_states(device: torch.device) -> dict[str, Tensor]:
    """States of torch's global generators, from which a network's own dropout is drawn."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_global_states(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Put them where a run left them that drew from them."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
