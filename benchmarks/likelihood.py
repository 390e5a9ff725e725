r"""Log-likelihood through the flow: agreement, evaluations and points a second beside the peers, in one run.

Problems are mixtures whose density is known, and a network trained on one of them whose exact likelihood is a fine
solve. All sides solve the same flow from the same points. A peer gets the velocity as one short function (`Field`): for
a mixture its formula, for a network the bare network, so that nothing of this package slows it; and the exact density
of the prior. Each library climbs its ladders of settings, from cheap to exact, until the goal is reached; of those that
reach it the one with the fewest evaluations is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

import sde
from benchmarks import harness
from sde.solvers.likelihood.log_prob import times_up

GOAL = 5e-5
"""Mean absolute error in nats that counts as agreement."""
OURS, BEST = "sde", "sde, fewest steps"
STEPS = (48, 56, 64, 72, 80, 88, 96, 104, 112, 128, 144, 160)
NETWORK_POINTS = 200
PROBLEMS = ("ring, Flow", "ring, VP", "ring, EDM", "ten, Flow", "ten, VP", "ten, EDM", "network, Flow")


@dataclass
class Field:
    """dx/dt of a flow from data to noise, as a peer asks for it; it counts its calls."""

    velocity: Callable[[Tensor, Tensor], Tensor]
    calls: int = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.velocity(t, x)


@dataclass(frozen=True)
class Problem:
    """Points and what is to be said of them.

    Attributes:
        name: Target and SDE.
        model: What ours is given.
        velocity: What peers are given, (t, x) to dx/dt.
        x: Points, (B, d), float64.
        begin: First time of a peer.
        exact: Their log-density at the first time, in nats.
    """

    name: str
    model: sde.Model
    velocity: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    begin: float
    exact: Tensor

    @property
    def kind(self) -> str:
        """Name of the SDE."""
        return type(self.model.sde).__name__

    @property
    def end(self) -> float:
        """Time of the prior."""
        return self.model.sde.t_max

    def field(self) -> Field:
        """The velocity with a counter of its own."""
        return Field(self.velocity)


@dataclass(frozen=True)
class Rule:
    """A library at a setting; `run` gives log-likelihoods and evaluations. A ladder's settings stand by rising cost."""

    library: str
    settings: str
    run: Callable[[Problem], tuple[Tensor, int]]
    ladder: str = ""


@dataclass
class Score:
    """What a rule did on a problem."""

    problem: str
    rule: Rule
    error: float
    largest: float
    evaluations: int
    seconds: float  # CPU, of the whole batch
    points: int

    @property
    def reached(self) -> bool:
        return self.error <= GOAL

    @property
    def speed(self) -> float:
        """Points a second."""
        return self.points / self.seconds


@dataclass
class Result:
    """Winners of each library on each problem, timed in turns; all that was tried; what priors cost; who is absent."""

    kept: list[Score] = field(default_factory=list)
    tried: list[Score] = field(default_factory=list)
    mismatch: list[tuple[str, str, float, float, float]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    spread: float = 0.0


def ring() -> sde.Mixture:
    """Eight modes of unequal weight in the plane."""
    a = torch.arange(8) * math.pi / 4
    weights = [0.30, 0.20, 0.15, 0.12, 0.09, 0.07, 0.05, 0.02]
    return sde.Mixture(weights, 1.5 * torch.stack([a.cos(), a.sin()], 1), [0.0225] * 8).double()


def ten() -> sde.Mixture:
    """Five modes in ten dimensions, shifted and scaled."""
    means = 3 * torch.randn(5, 10, generator=torch.Generator().manual_seed(1)) + 4
    return sde.Mixture([0.3, 0.25, 0.2, 0.15, 0.1], means, [0.5, 1.0, 2.0, 0.7, 1.5]).double()


def forward(kind: str) -> sde.ScalarSDE:
    """The SDE of a problem: Flow begins so early that its marginal is the data's own density."""
    return sde.Flow(t_min=1e-6) if kind == "Flow" else sde.VP() if kind == "VP" else sde.EDM()


def closed_form(target: sde.Mixture, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity of an isotropic mixture in one formula: sum_k w_k (a' m_k + (a' a d_k + s' s) r_k / v_k)."""
    means, d, log_w = target.means, target.variances[:, 0], torch.log(target.weights)
    size = means.shape[1]

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        if kind == "Flow":
            a, s2, da, ds = 1 - t, t * t, -1.0, t
        elif kind == "EDM":
            a, s2, da, ds = 1.0, t * t, 0.0, t
        else:
            a2 = torch.exp(-0.1 * t - 9.95 * t * t)
            a = a2.sqrt()
            s2, da, ds = 1 - a2, -(0.1 + 19.9 * t) * a / 2, (0.1 + 19.9 * t) * a2 / 2
        v = a * a * d + s2
        r = x[:, None] - a * means
        w = torch.softmax(log_w - size / 2 * torch.log(v) - r.square().sum(-1) / (2 * v), 1)
        return ((w * (da * a * d + ds) / v)[..., None] * r).sum(1) + da * (w @ means)

    return velocity


@cache
def network(steps: int) -> sde.ScoreModel:
    """An MLP that learnt the ring's velocity."""
    net = sde.nets.MLP(dim=2, width=128, depth=2)
    model = sde.ScoreModel(net, sde.Flow(t_min=1e-6), "velocity")
    data = ring().sample(20_000, torch.Generator().manual_seed(2)).float()
    sde.fit(model, data, steps=steps, batch=256, generator=torch.Generator().manual_seed(3), progress=False)
    return model.double().eval().requires_grad_(False)


def problem(name: str, points: int, steps: int = 2000) -> Problem:
    """A problem by its name."""
    law, kind = name.split(", ")
    target, generator = ten() if law == "ten" else ring(), torch.Generator().manual_seed(0)
    x = target.sample(points, generator).double()
    if law == "network":
        model = network(steps)
        bare = lambda t, u: model.net(u, t.expand(len(u)))  # noqa: E731
        exact = sde.log_prob(model, x, times_up(model, 400), sde.RK4(), trace=sde.ExactTrace())
        return Problem(name, model, bare, x, model.sde.t_min, exact)
    exact_model, flow = sde.ExactScore(target, forward(kind)).double(), closed_form(target, kind)
    if kind == "Flow":
        return Problem(name, exact_model, flow, x, 0.0, target.log_prob(x))
    begin = exact_model.sde.t_min
    x = exact_model.sde.perturb(x, begin, generator).x
    return Problem(name, exact_model, flow, x, begin, exact_model.log_prob(x, begin))


def ours(p: Problem, quick: bool = False) -> list[Rule]:
    """By default, by a tolerance, and at the fewest steps that reach the goal, with the closed form and without."""

    def rule(name: str, settings: str, ladder: str = "", steps: int | None = None, **given: Any) -> Rule:
        def run(p: Problem) -> tuple[Tensor, int]:
            found = sde.log_likelihood(p.model, p.x, None if steps is None else times_up(p.model, steps), **given)
            return found.value, found.evaluations

        return Rule(name, settings, run, ladder)

    made = [rule(f"{OURS}, by default", "log_prob(model, x)"), rule(f"{OURS}, by a tolerance", "tol=5e-5", tol=GOAL)]
    exact = sde.ExactTrace()
    for order in (4,) if quick else (4, 5, 6):
        for n in STEPS[::3] if quick else STEPS:
            words, ladder = f"Adams({order}), {n} steps", f"Adams({order})"
            made.append(rule(BEST, words, ladder, n, solver=sde.Adams(order)))
            if not p.name.startswith("network"):
                name, words = f"{BEST}, backward passes", f"{words}, ExactTrace()"
                made.append(rule(name, words, ladder, n, solver=sde.Adams(order), trace=exact))
    return made


def tried(p: Problem, rule: Rule) -> Score:
    """A rule's run, its error and its CPU seconds."""
    start = time.process_time()
    value, evaluations = rule.run(p)
    seconds = time.process_time() - start
    error = (value.double() - p.exact).abs()
    mean = float(error.mean())
    mean = mean if math.isfinite(mean) else math.inf
    return Score(p.name, rule, mean, float(error.max()), evaluations, seconds, len(p.x))


def cheapest(scores: Sequence[Score]) -> Score:
    """Of a library: the fewest evaluations that reach the goal, else the most exact."""
    reached = [s for s in scores if s.reached]
    return min(reached, key=lambda s: s.evaluations) if reached else min(scores, key=lambda s: s.error)


def race(p: Problem, rules: Sequence[Rule], result: Result, rounds: int) -> None:
    """Climb the ladders, then let the best of each library take turns."""
    scores: dict[str, list[Score]] = {}
    done: set[tuple[str, str]] = set()
    for rule in rules:
        if (rule.library, rule.ladder) in done and rule.ladder:
            continue
        try:
            score = tried(p, rule)
        except Exception as error:  # a peer's own limit must not end the run
            result.skipped.append(f"{rule.library}, {rule.settings}, {p.name}: {type(error).__name__}: {error}")
            continue
        scores.setdefault(rule.library, []).append(score)
        if score.reached:
            done.add((rule.library, rule.ladder))
    best = {library: cheapest(found) for library, found in scores.items()}
    turns = harness.interleave({name: lambda s=s: s.rule.run(p) for name, s in best.items()}, rounds)
    for name, score in best.items():
        score.seconds = turns[name].least
        result.spread = max(result.spread, turns[name].spread)
        result.kept.append(score)
    result.tried += [s for found in scores.values() for s in found]


def mismatch(points: int) -> list[tuple[str, str, float, float, float]]:
    """Nats that a prior costs: N(0, I) at t_max, the data's mean and scale, their mean and covariance."""
    rows = []
    for law, target in (("ring", ring()), ("ten", ten())):
        draws = target.sample(20_000, torch.Generator().manual_seed(7)).double()
        full = sde.Gaussian(draws.mean(0), torch.cov(draws.T))
        for kind in ("VP", "EDM", "Flow"):
            p = problem(f"{law}, {kind}", points)
            size = target.event.numel()
            plain = sde.Gaussian(torch.zeros(size), 1e-12).double()  # all that is left is the noise
            round_ = sde.Gaussian(target.mean, target.scale**2).double()
            found = [sde.log_prob(p.model, p.x, prior=prior) for prior in (plain, round_, full.double())]
            rows.append((law, kind, *(float((f - p.exact).abs().mean()) for f in found)))
    return rows


def measure(
    problems: Sequence[str] = PROBLEMS, points: int = 500, rounds: int = 5, steps: int = 2000, quick: bool = False
) -> Result:
    """All problems, all rules."""
    from benchmarks import likelihood_peers

    result = Result()
    for name in problems:
        p = problem(name, min(points, NETWORK_POINTS) if name.startswith("network") else points, steps)
        rules = ours(p, quick) + likelihood_peers.peers(p, result.skipped, quick)
        race(p, rules, result, rounds)
        print(f"  {name}: {len(rules)} settings", flush=True)
    result.mismatch = mismatch(50 if quick else 200)
    result.skipped = list(dict.fromkeys(result.skipped))
    return result
