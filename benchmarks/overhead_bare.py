r"""The floor: each rule on each problem as a careful person writes it by hand for that problem alone.

Everything that depends on times is a Python number, made before the loop starts. A step is x_s = A x + B f(c x) + Z z:
where c or A is 1 the operation is left out, and a sum is one `torch.add` with its factor. What such a loop does not do
is what a library is for: it has one rule, one schedule and one network, and checks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

import sde
from benchmarks.problems import Problem

Row = tuple[float, float, float, float]
"""c, A, B and Z of a step."""
Run = Callable[[], Tensor]


def outputs(problem: Problem, t: float) -> tuple[float, float, float, float, float]:
    """c, and x0 = a0 x + b0 F, eps = a1 x + b1 F for F = f(c x), data of standard deviation 1."""
    if problem.kind == "flow":
        return 1.0, 1.0, -t, 1.0, 1 - t
    if problem.kind == "edm":
        r = math.hypot(1.0, t)
        return 1 / r, 1 / r**2, t / r, t / r**2, -1 / r
    alpha, sigma, *_ = problem.levels(t)
    return 1.0, 1 / alpha, -sigma / alpha, 0.0, 1.0


def row(problem: Problem, rule: str, t: float, s: float) -> Row:
    """A step of a first-order rule."""
    c, a0, b0, a1, b1 = outputs(problem, t)
    alpha_t, sigma_t, dalpha, dsigma = problem.levels(t)
    alpha, sigma, *_ = problem.levels(s)
    if rule == "euler_maruyama" and alpha_t == 0:  # the drift is infinite: that step goes by the bridge
        rule = "ancestral"
    if rule in ("euler", "euler_maruyama"):
        h, z = s - t, 0.0
        if rule == "euler_maruyama":
            z = math.sqrt(problem.g2(t) * abs(h))
            dsigma += problem.g2(t) / (2 * sigma_t)
        return c, 1 + h * (dalpha * a0 + dsigma * a1), h * (dalpha * b0 + dsigma * b1), z
    kept = (alpha_t / alpha * sigma / sigma_t) ** 2 if rule == "ancestral" else 1.0
    k = sigma * math.sqrt(kept)
    return c, alpha * a0 + k * a1, alpha * b0 + k * b1, sigma * math.sqrt(1 - kept)


def one_step(net: nn.Module, x: Tensor, times: Sequence[float], rows: Sequence[Row]) -> Run:
    """The loop of a first-order rule, as few operations as its numbers allow."""
    still, plain = (all(abs(r[i] - 1) < 1e-12 for r in rows) for i in (1, 0))

    def drift_alone() -> Tensor:
        y = x
        for t, (_, _, b, _) in zip(times, rows, strict=False):
            y = torch.add(y, net(y, t), alpha=b)
        return y

    def combined() -> Tensor:
        y = x
        for t, (_, a, b, z) in zip(times, rows, strict=False):
            y = torch.add(y * a, net(y, t), alpha=b)
            if z:
                y = torch.add(y, torch.randn_like(y), alpha=z)
        return y

    def preconditioned() -> Tensor:
        y = x
        for t, (c, a, b, z) in zip(times, rows, strict=False):
            y = torch.add(y * a, net(y * c, t), alpha=b)
            if z:
                y = torch.add(y, torch.randn_like(y), alpha=z)
        return y

    noisy = any(r[3] for r in rows)
    return (drift_alone if still and not noisy else combined) if plain else preconditioned


def heun(net: nn.Module, x: Tensor, times: Sequence[float], problem: Problem) -> Run:
    """Two Euler steps of the same length, and the middle of where they started and ended."""
    pairs = [(t, s, row(problem, "euler", t, s), row(problem, "euler", s, 2 * s - t)) for t, s in pairwise(times)]

    def drift_alone() -> Tensor:
        y = x
        for t, s, (_, _, b, _), _ in pairs:
            d = net(y, t)
            y = torch.add(y, d + net(torch.add(y, d, alpha=b), s), alpha=b / 2)
        return y

    def combined() -> Tensor:
        y = x
        for t, s, (_, a, b, _), (_, a1, b1, _) in pairs:
            w = torch.add(y * a, net(y, t), alpha=b)
            y = torch.lerp(y, torch.add(w * a1, net(w, s), alpha=b1), 0.5)
        return y

    def preconditioned() -> Tensor:
        y = x
        for t, s, (c, a, b, _), (c1, a1, b1, _) in pairs:
            w = torch.add(y * a, net(y * c, t), alpha=b)
            y = torch.lerp(y, torch.add(w * a1, net(w * c1, s), alpha=b1), 0.5)
        return y

    return {"flow": drift_alone, "vp": combined, "edm": preconditioned}[problem.kind]


def multistep(net: nn.Module, x: Tensor, times: Tensor, solver: sde.Solver, model: sde.ScoreModel) -> Run:
    """The default solver's rule: its weights, on what the network says of x0 and eps."""
    started = solver.start(sde.ReverseSDE(model), times)
    assert isinstance(started, sde.Adams)
    problem = {"Flow": "flow", "VP": "vp", "EDM": "edm"}[type(model.sde).__name__]
    rows = []
    for t in times.tolist()[:-1]:
        c, a0, b0, a1, b1 = outputs(Problem("", problem), t)
        p, q, growth, _, weights = started.rows[t]
        rows.append((t, c, p * a0 + q * a1, p * b0 + q * b1, growth, [w for w in weights if w]))

    def combined() -> Tensor:
        y, memory = x, []
        for t, _, a, b, growth, weights in rows:
            memory = [torch.add(y * a, net(y, t), alpha=b), *memory[: len(weights) - 1]]
            y = y * growth
            for w, value in zip(weights, memory, strict=False):
                y = torch.add(y, value, alpha=w)
        return y

    def preconditioned() -> Tensor:  # the rule's own quantity is what this network puts out
        y, memory = x, []
        for t, c, _, _, growth, weights in rows:
            memory = [net(y * c, t), *memory[: len(weights) - 1]]
            y = y * growth
            for w, value in zip(weights, memory, strict=False):
                y = torch.add(y, value, alpha=w)
        return y

    return preconditioned if problem == "edm" else combined


def textbook(net: nn.Module, x: Tensor, times: Sequence[float]) -> Run:
    """Euler's method as it is usually written, with a product and a sum."""

    def run() -> Tensor:
        y = x
        for t, s in pairwise(times):
            y = y + (s - t) * net(y, t)
        return y

    return run
