r"""Wrong scores: what noise and correctors are worth at an equal number of evaluations.

A smooth field is added to F, what a network of the `edm` parameterisation puts out,

    x0(x, t) <- x0(x, t) + size · r / sqrt(1 + r^2) · e(x / |(alpha, sigma)|, log r),      r = sigma / alpha,

e being a sum of waves of unit mean square: an error of equal size at every noise level, as training with equal weights
leaves it. The field is no gradient of anything, so that at each noise level Langevin dynamics has a law near the right
one, and an error made at one level can be mended at the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import sde
from benchmarks import harness
from benchmarks.accuracy_field import Quick
from benchmarks.accuracy_targets import Problem, problem, standard
from benchmarks.stochastic import FLOW, Ours, Score, corrected, measured_by, run

BUDGETS = (20, 50, 100)
TRAINING = (2000, 300)
"""Steps of the networks."""
TARGETS = ("ring", "spiral")
SOLVERS = (
    Ours(FLOW, ""),
    Ours("EulerMaruyama", "EulerMaruyama"),
    Ours("DDIM", "DDIM"),
    Ours("Ancestral", "Ancestral"),
    Ours("DPM++ 2M SDE", "DPMSolverPP", {"order": 2}, 1.0),
    Ours("SA-Solver 3, 4", "SASolver", {"predictor_order": 3, "corrector_order": 4}),
    *(Ours(f"Churn {churn:g}", "Churn", {"s_churn": churn, "s_min": 0.0}) for churn in (10.0, 40.0)),
    Ours("Restart", "Restart", {"repeats": 1}),
    Ours("Restart twice", "Restart", {"repeats": 2}),
    *(
        corrected(predictor, "AnnealedLangevin", snr)
        for predictor in ("DDIM", "EulerMaruyama", "DPMSolverPP")
        for snr in (0.05, 0.1, 0.2, 0.4)
    ),
    *(corrected("EulerMaruyama", "Langevin", snr) for snr in (0.05, 0.16)),
)


class Waves(sde.Wrapper):
    """A model whose F is off by a smooth random field of a given root mean square."""

    def __init__(self, model: sde.Model, size: float, waves: int = 24, seed: int = 3) -> None:
        super().__init__(model)
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        d = model.target.event[0]
        self.size, self.frequency, self.drift = size, 2 * normal(d, waves), normal(waves)
        self.phase, self.height = 2 * math.pi * torch.rand(waves, generator=generator).double(), normal(waves, d)
        self.height = self.height * math.sqrt(2 / waves)  # a cosine has mean square 1/2

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
        point, (alpha, sigma) = self.model(x, t), map(float, self.sde.levels(t))
        r, u = sigma / alpha, x / math.hypot(alpha, sigma)
        field = torch.cos(u @ self.frequency + self.drift * math.log(r) + self.phase) @ self.height
        return sde.Point(self.sde, x, t, point.x0 + self.size * r / math.hypot(1, r) * field)


def other(truth: sde.Mixture, size: float, seed: int = 4) -> sde.Mixture:
    """Another mixture: means off by so much, weights by a random factor."""
    generator = torch.Generator().manual_seed(seed)
    means = truth.means + size * torch.randn(truth.means.shape, generator=generator, dtype=torch.float64)
    factor = torch.exp(2 * size * torch.randn(truth.weights.shape, generator=generator, dtype=torch.float64))
    return sde.Mixture(truth.weights * factor, means, truth.covs)


def trained(truth: sde.Mixture, forward: sde.ScalarSDE, steps: int) -> sde.Model:
    """A small network after so many steps of `fit`."""
    before = torch.random.get_rng_state()
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=truth.event[0], width=128)
    torch.random.set_rng_state(before)
    data = truth.sample(25_600, torch.Generator().manual_seed(1)).float()
    model = sde.ScoreModel(net, forward, mean=data.mean(0), scale=float(data.std()))
    sde.fit(model, data, steps, generator=torch.Generator().manual_seed(2), progress=False)
    return model


def models(given: Problem, training: Sequence[int]) -> dict[str, Callable[[], sde.Model]]:
    """The scores of a problem, from right to wrong."""
    truth, forward = standard(given.truth), given.forward
    exact = sde.ExactScore(Quick(truth), forward)
    return {
        "exact": lambda: exact,
        "field of size .1": lambda: Waves(exact, 0.1),
        "field of size .3": lambda: Waves(exact, 0.3),
        "another mixture": lambda: sde.ExactScore(Quick(other(truth, 0.1)), forward),
        **{f"network, {steps} steps": lambda n=steps: trained(truth, forward, n) for steps in training},
    }


def errors(
    samples: int,
    targets: Sequence[str] = TARGETS,
    budgets: Sequence[int] = BUDGETS,
    training: Sequence[int] = TRAINING,
    jobs: int = 1,
) -> tuple[list[Score], dict[tuple[str, str], tuple[float, float]]]:
    """Distances to the true law of every solver under every score, on VP; floor and tie by target."""
    scores, rulers = [], {}
    names = {target: list(models(problem(target, "VP", samples), training)) for target in targets}
    asked = [(target, name, samples, budgets, tuple(training)) for target in targets for name in names[target]]
    for (target, name, *_), (found, ruler) in zip(asked, harness.spread(one_score, asked, jobs), strict=True):
        scores += found
        rulers[target, "VP"] = ruler
        print(f"  {target}, {name}: {len(found)} runs", flush=True)
    return scores, rulers


def one_score(
    target: str, name: str, samples: int, budgets: Sequence[int], training: Sequence[int]
) -> tuple[list[Score], tuple[float, float]]:
    """Every solver under one score of one target; floor and tie."""
    given = problem(target, "VP", samples)
    ruler = measured_by(given, samples)
    model = models(given, training)[name]()
    x = given.x.float() if name.startswith("network") else given.x
    scores = []
    with torch.no_grad():
        for budget in budgets:
            for one in SOLVERS:
                ends = run(model, x, one, budget)
                if ends is not None:
                    scores.append(Score(target, name, budget, "sde", one.label, "data_scaled", ruler(ends)))
    return scores, (ruler.floor, ruler.tie)
