r"""Negative log-likelihood by objective: ours beside torchcfm's and flow_matching's, equal networks, equal CPU seconds.

One network (`sde.nets.MLP`, 64 wide, with Fourier features of time: the peers do better by it than by their examples'
plain one) on eight Gaussians, swiss roll and checkerboard of variance one. Every way first makes short turns, which
tell its steps a CPU second; then each is trained for as many steps as fit into the same CPU seconds, ours by `fit` as
it is, the peers by their own examples' code (Adam), all at a rate of 4e-3, as 1e-3 learns too little in seconds. Two of
ours are also trained without average and schedule, as the peers are, so that the objective is seen apart from them.

All are judged by one likelihood, that of fresh clean data through the learned probability flow: no way's own estimate
is believed. The entropy of the data, which nobody can go below, is known exactly or by quadrature.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import sde
from benchmarks import harness
from benchmarks.harness import number
from benchmarks.peers import bring, collect, quiet
from benchmarks.training import BATCH, batches
from sde import data, train

POINTS, OURS, RATE = 50_000, "sde", 4e-3
Net = functools.partial(sde.nets.MLP, dim=2, width=64, depth=3)
DATA: dict[str, Callable[..., data.Dataset]] = {
    "eight Gaussians": data.eight_gaussians,
    "swiss roll": data.swiss_roll,
    "checkerboard": data.checkerboard,
}

Begun = tuple[Callable[[int], None], Callable[[], sde.ScoreModel]]
"""train(steps), and the trained model as a score model of ours, to be judged."""


@dataclass(frozen=True)
class Way:
    """A name, and from a network and data to what trains it."""

    name: str
    begin: Callable[[nn.Module, Tensor], Begun]


def ours(label: str, forward: sde.ForwardSDE, param: str, loss: train.Objective, **told: Any) -> Way:
    """`sde.fit` by one objective, else as it is."""

    def begin(net: nn.Module, x: Tensor) -> Begun:
        model = sde.ScoreModel(net, forward, param, mean=x.mean(0), scale=float(x.std()))
        return lambda steps: void(sde.fit(model, x, steps, batch=BATCH, lr=RATE, loss=loss, **told)), lambda: model

    return Way(f"{OURS}, {label}", begin)


def void(_: object) -> None:
    """A call for what it does."""


class Reversed(nn.Module):
    """A peer's velocity, whose noise is at time 0, as ours, whose data are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return -self.net(x, 1 - c)


def of_a_peer(net: nn.Module) -> sde.ScoreModel:
    return sde.ScoreModel(Reversed(net), sde.Flow(), "velocity", coupled=True)


def torchcfm(kind: str, name: str) -> Callable[[], list[Way]]:
    """The 2-D example, with sigma = 0 (its .1 would blur the data)."""

    def make() -> list[Way]:
        matcher = getattr(bring("torchcfm.conditional_flow_matching"), kind)

        def begin(net: nn.Module, x: Tensor) -> Begun:
            optimizer, matching = torch.optim.Adam(net.parameters(), lr=RATE), matcher(sigma=0.0)

            def steps(n: int) -> None:
                for x1 in batches(x, n):
                    optimizer.zero_grad()
                    t, xt, ut = matching.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
                    torch.mean((net(xt, t) - ut) ** 2).backward()
                    optimizer.step()

            return steps, lambda: of_a_peer(net)

        return [Way(f"torchcfm, {name}", begin)]

    return make


def flow_matching(kind: str, name: str) -> Callable[[], list[Way]]:
    """The README's 2-D example, with one of the library's schedulers."""

    def make() -> list[Way]:
        paths, schedulers = bring("flow_matching.path"), bring("flow_matching.path.scheduler")

        def begin(net: nn.Module, x: Tensor) -> Begun:
            path = paths.AffineProbPath(scheduler=getattr(schedulers, kind)())
            optimizer = torch.optim.Adam(net.parameters(), lr=RATE)

            def steps(n: int) -> None:
                for x1 in batches(x, n):
                    optimizer.zero_grad()
                    sample = path.sample(t=torch.rand(len(x1)), x_0=torch.randn_like(x1), x_1=x1)
                    torch.pow(net(sample.x_t, sample.t) - sample.dx_t, 2).mean().backward()
                    optimizer.step()

            return steps, lambda: of_a_peer(net)

        return [Way(f"flow_matching, {name}", begin)]

    return make


PEERS: dict[str, Callable[[], list[Way]]] = {
    "torchcfm": torchcfm("ConditionalFlowMatcher", "CFM"),
    "torchcfm OT": torchcfm("ExactOptimalTransportConditionalFlowMatcher", "OT-CFM"),
    "flow_matching": flow_matching("CondOTScheduler", "CondOT"),
    "flow_matching cosine": flow_matching("CosineScheduler", "cosine"),
}


def ways(skipped: list[str]) -> list[Way]:
    """Ours by objective, and every peer that is there."""
    bare = {"ema": 0.0, "decay": "constant", "warmup": 0}
    return [
        ours("denoising", sde.VP(), "edm", train.Denoising()),
        ours("implicit", sde.VP(), "edm", train.Implicit()),
        ours("sliced", sde.VP(), "edm", train.Sliced()),
        ours("maximum likelihood", sde.VP(), "edm", train.maximum_likelihood()),
        ours("min-SNR", sde.VP(), "edm", train.min_snr_loss()),
        ours("EDM", sde.EDM(), "edm", train.edm_loss()),
        ours("flow matching", sde.Flow(), "velocity", train.flow_matching()),
        ours("flow matching, OT", sde.Flow(), "velocity", train.flow_matching(train.optimal_transport)),
        ours("denoising, bare", sde.VP(), "edm", train.Denoising(), **bare),
        ours("flow matching, bare", sde.Flow(), "velocity", train.flow_matching(), **bare),
        *collect(PEERS, skipped),
    ]


def entropy(name: str, x: Tensor, given: data.Dataset) -> float:
    """Mean negative log-density of points under the data's own law, in nats."""
    scale, y = float(given.scale), x.double()
    if name == "checkerboard":
        return math.log(8) - 2 * math.log(scale)
    if name == "eight Gaussians":
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        centres, noise = torch.stack([angle.cos(), angle.sin()], 1), 0.1
    else:  # the roll as very many Gaussians along it: their gaps are a hundredth of their width
        angle = 1.5 * math.pi * (1 + 2 * (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000)
        strip = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        centres, noise = strip - torch.as_tensor(given.mean).double(), 0.5
    v = (noise / scale) ** 2
    far = torch.cdist(y, centres / scale).square()
    log_p = torch.logsumexp(-far / (2 * v), 1) - math.log(len(centres)) - math.log(2 * math.pi * v)
    return -float(log_p.mean())


@dataclass
class Result:
    """Negative log-likelihoods, one for each seed, by data and way; entropies of the test points; steps made."""

    seconds: float
    nats: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    ode: float = 0.0

    def median(self, name: str, way: str) -> float:
        return statistics.median(self.nats[name][way])


def judged(model: sde.ScoreModel, x: Tensor, steps: int = 64) -> float:
    """Mean negative log-likelihood of clean data, nats."""
    model.eval()
    return -float(sde.log_prob(model, x, sde.grids.data_scaled(model.sde, steps, scale=model.scale).flip(0)).mean())


def speeds(found: list[Way], x: Tensor, steps: int, rounds: int) -> dict[str, float]:
    """Steps a CPU second, of the median turn: all are disturbed alike."""
    runs = {way.name: functools.partial(way.begin(Net(), x)[0], steps) for way in found}
    with quiet():
        turns = harness.interleave(runs, rounds, at_least=0.0)
    return {name: steps / statistics.median(turn.seconds) for name, turn in turns.items()}


def measure(seconds: float = 5.0, seeds: int = 3, test: int = 2000, turn: int = 100, rounds: int = 3) -> Result:
    """Every way on every data set."""
    result = Result(seconds)
    found = ways(result.skipped)
    rates = speeds(found, data.moons(POINTS, generator=seeded(0)).x, turn, rounds)
    result.steps = {name: max(1, round(rate * seconds)) for name, rate in rates.items()}
    for name, make in DATA.items():
        given, truth = make(POINTS, generator=seeded(1)), make(test, generator=seeded(2))
        result.least[name], result.nats[name] = entropy(name, truth.x, truth), {}
        for way in found:
            nats = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                run, model = way.begin(Net(), given.x)
                with quiet():
                    run(result.steps[way.name])
                nats.append(judged(model(), truth.x))
                if seed == 0:
                    result.ode = max(result.ode, abs(judged(model(), truth.x, 128) - nats[0]))
            result.nats[name][way.name] = nats
            print(f"  {name}, {way.name}: {number(statistics.median(nats))} nats", flush=True)
    return result


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
