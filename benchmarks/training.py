r"""Training an equal network, 3 → 128 × 3 → 2, on eight modes: iterations a second, and CPU seconds to a quality.

Every way is used as its own documentation uses it, on the same 25,600 points, with batches of 256: the peers with Adam
or AdamW at 1e-3, as their toy examples have it, ours with all the defaults of `sde.fit`. If the rate of `fit` is
another, a bare loop at that rate shows what that alone does.

Speed: turns of the same number of steps, in CPU time. Quality: sliced W2 between 10,000 samples and 20,000 fresh
points, for a ladder of budgets; a way with a learning-rate schedule is trained anew for every budget, one without goes
on from rung to rung (the same thing for it). The time to a quality is that of the first budget whose median over seeds
is below it: steps to it, over the steps a second measured in turns. Sampling and evaluating are not counted.
"""

from __future__ import annotations

import functools
import inspect
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sde
from benchmarks import harness
from benchmarks.peers import collect, quiet
from sde.metrics import floor, sliced_wasserstein

POINTS, BATCH, RATE = 25_600, 256, 1e-3
OURS, BARE, FUSED = "sde", "bare loop, eager Adam", "bare loop, fused Adam"


class Net(nn.Module):
    """The plain network of all: (x, c) concatenated, three hidden layers of 128."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.layers(torch.cat([x, c.expand(len(x))[:, None]], dim=1))


def eight_modes(n: int, seed: int) -> Tensor:
    """Eight Gaussians of standard deviation .15 and unequal weights on a circle of radius 1.5: (n, 2)."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.tensor([0.30, 0.20, 0.15, 0.12, 0.09, 0.07, 0.05, 0.02])
    angle = torch.multinomial(weights, n, replacement=True, generator=g) * (math.pi / 4)
    return 1.5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(n, 2, generator=g)


Train = Callable[[int], None]
Draw = Callable[[int], Tensor]


@dataclass(frozen=True)
class Way:
    """One way to train the network.

    Attributes:
        name: Library and objective.
        begin: From a network and data to (train, draw): train(steps) trains it, draw(n) samples what was trained.
        scheduled: Its learning rate ends with the budget, so that each budget is a run of its own.
    """

    name: str
    begin: Callable[[Net, Tensor], tuple[Train, Draw]]
    scheduled: bool = False


def batches(data: Tensor, steps: int) -> Iterator[Tensor]:
    """Batches drawn with replacement, as a plain loop draws them."""
    for _ in range(steps):
        yield data[torch.randint(len(data), (BATCH,))]


def midpoint(velocity: Callable[[Tensor, Tensor], Tensor], n: int, steps: int = 25) -> Tensor:
    """Samples by the midpoint rule, for loops whose library is torch alone; noise at t = 0."""
    x, h = torch.randn(n, 2), 1 / steps
    with torch.no_grad():
        for i in range(steps):
            t = torch.tensor(i * h)
            x = x + h * velocity(x + h / 2 * velocity(x, t), t + h / 2)
    return x


def bare(name: str, fused: bool = True, rate: float = RATE) -> Way:
    """Flow matching in as few lines as there are."""

    def begin(net: Net, data: Tensor) -> tuple[Train, Draw]:
        optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=fused)

        def train(steps: int) -> None:
            for x1 in batches(data, steps):
                x0, t = torch.randn_like(x1), torch.rand(len(x1))
                loss = (net(torch.lerp(x0, x1, t[:, None]), t) - (x1 - x0)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return train, lambda n: midpoint(net, n)

    return Way(name, begin)


def ours(label: str, forward: sde.ForwardSDE, param: str) -> Way:
    """`sde.fit` with all that it does by default: EMA, schedule, history, progress bar."""

    def begin(net: Net, data: Tensor) -> tuple[Train, Draw]:
        model = sde.ScoreModel(net, forward, param, mean=data.mean(0), scale=float(data.std()))

        def train(steps: int) -> None:
            sde.fit(model, data, steps, batch=BATCH)

        return train, lambda n: sde.sample(model, (n, 2), steps=25, progress=False)

    return Way(f"{OURS}, {label}", begin, scheduled=True)


def ways(skipped: list[str]) -> list[Way]:
    """The floor, ours, and every peer that is there."""
    from benchmarks.training_peers import PEERS

    rate = inspect.signature(sde.fit).parameters["lr"].default
    found = [
        bare(BARE, fused=False),
        bare(FUSED),
        *([bare(f"{FUSED}, lr {rate:g}", rate=rate)] if rate != RATE else []),
        ours("Flow, velocity", sde.Flow(), "velocity"),
        ours("VP, edm", sde.VP(), "edm"),
        ours("EDM, edm", sde.EDM(), "edm"),
    ]
    return found + collect({name: lambda make=make: [make()] for name, make in PEERS.items()}, skipped)


def seeded(seed: int) -> Net:
    """The same weights for everybody."""
    torch.manual_seed(seed)
    return Net()


@dataclass
class Result:
    """What was measured.

    Attributes:
        rates: Steps a CPU second, by way.
        errors: Sliced W2 by way: at each rung of the ladder, one for each seed.
        ladder: Budgets in steps.
        goals: Qualities to reach.
        floor: Sliced W2 of two draws of the truth.
        spread: How disturbed the machine was.
    """

    rates: dict[str, float]
    errors: dict[str, list[list[float]]]
    ladder: list[int]
    goals: tuple[float, ...]
    floor: str
    skipped: list[str]
    spread: float

    def steps_to(self, name: str, goal: float) -> int | None:
        """The first budget whose median error is at most the goal."""
        for budget, errors in zip(self.ladder, self.errors.get(name, []), strict=False):
            if statistics.median(errors) <= goal:
                return budget
        return None

    def seconds_to(self, name: str, goal: float) -> float | None:
        """Its CPU seconds."""
        steps = self.steps_to(name, goal)
        return steps / self.rates[name] if steps else None


def speed(found: list[Way], data: Tensor, steps: int, rounds: int) -> tuple[dict[str, float], float]:
    """Steps a CPU second, in turns."""
    with quiet():
        trains = {way.name: way.begin(seeded(0), data)[0] for way in found}
        runs = {name: functools.partial(train, steps) for name, train in trains.items()}
        turns = harness.interleave(runs, rounds, at_least=0.0)
    rates = {name: steps / turn.least for name, turn in turns.items()}
    return rates, statistics.median(turn.spread for turn in turns.values())


def climb(way: Way, data: Tensor, truth: Tensor, ladder: list[int], seed: int, stop: float) -> list[float]:
    """Error at each rung, until it has been at most `stop` twice in a row."""
    done, errors = 0, []
    for budget in ladder:
        with quiet():
            if way.scheduled or not done:
                (train, draw), done = way.begin(seeded(seed), data), 0
            train(budget - done)
            done = budget
            with torch.random.fork_rng():  # what evaluation draws does not change what training draws
                torch.manual_seed(seed)
                x = draw(len(truth) // 2)
        directions = torch.Generator().manual_seed(seed)
        errors.append(float(sliced_wasserstein(x, truth, 32, generator=directions)))
        if len(errors) > 1 and max(errors[-2:]) <= stop:
            break
    return errors


def quality(
    found: list[Way], data: Tensor, ladder: list[int], seeds: int, goals: tuple[float, ...], samples: int
) -> dict[str, list[list[float]]]:
    """Errors by way, rung and seed, as far as every seed has climbed."""
    truth, errors = eight_modes(2 * samples, seed=10**6), {}
    for way in found:
        climbs = [climb(way, data, truth, ladder, seed, min(goals)) for seed in range(seeds)]
        errors[way.name] = [list(rung) for rung in zip(*climbs, strict=False)]
        best = min(statistics.median(rung) for rung in errors[way.name])
        print(f"  {way.name}: sliced W2 down to {harness.number(best)}", flush=True)
    return errors


def rungs(first: int, last: int, ratio: float = 1.3) -> list[int]:
    """A ladder of budgets, each `ratio` times the one before.

    Example:
        >>> rungs(100, 200)
        [100, 130, 169]
    """
    count = int(math.log(last / first) / math.log(ratio) + 1e-9) + 1
    return [round(first * ratio**i) for i in range(count)]


def measure(
    steps: int = 200,
    rounds: int = 20,
    seeds: int = 3,
    ladder: list[int] | None = None,
    goals: tuple[float, ...] = (0.2, 0.1),
    samples: int = 10_000,
) -> Result:
    """Speed, then quality."""
    ladder, skipped = ladder or rungs(150, 6100, 1.4), []
    data, found = eight_modes(POINTS, seed=0), ways(skipped)
    rates, spread = speed(found, data, steps, rounds)
    print(f"  steps a second of {len(found)} ways are measured; now quality", flush=True)
    found = [way for way in found if way.name != BARE]  # the eager loop makes the same steps as the fused one
    errors = quality(found, data, ladder, seeds, goals, samples)
    low = floor(_between, _modes, samples, repeats=5, generator=torch.Generator().manual_seed(0), m=2 * samples)
    return Result(rates, errors, ladder, goals, str(low), skipped, spread)


def _between(a: Tensor, b: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return sliced_wasserstein(a, b, 32, generator=generator)


def _modes(n: int, generator: torch.Generator | None = None) -> Tensor:
    return eight_modes(n, int(torch.randint(2**31, (), generator=generator)))
