"""The peers' likelihoods: each library's own routine, or the formula that it states, on the field of a problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.likelihood import Problem, Rule
from benchmarks.peers import bring, collect

TOLERANCES = (1e-3, 3e-4, 1e-4, 3e-5, 2e-5, 1e-5, 5e-6, 3e-6, 2e-6, 1e-6, 5e-7, 2e-7, 1e-7, 3e-8, 1e-8)
State = tuple[Tensor, Tensor]


def peers(p: Problem, skipped: list[str], quick: bool = False) -> list[Rule]:
    """Every peer that can solve this problem, at its ladder of settings."""
    tolerances = TOLERANCES[5:10:4] if quick else TOLERANCES
    makers: dict[str, Callable[[], list[Rule]]] = {
        "torchdiffeq": lambda: torchdiffeq(p, tolerances, quick),
        "zuko": lambda: zuko(p, tolerances),
        "score_sde": lambda: score_sde(p, tolerances),
    }
    if p.kind == "Flow":
        makers["flow_matching"] = lambda: flow_matching(p, tolerances, quick)
    if p.kind == "EDM":
        makers["k-diffusion"] = lambda: k_diffusion(p)
    return collect(makers, skipped)


def traced(field: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Tensor) -> State:
    """A field and its divergence by a backward pass for each coordinate: the usual loop."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = field(t, x)
        last = x.shape[1] - 1
        parts = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=i < last)[0][:, i] for i in range(last + 1)]
    return v.detach(), torch.stack(parts).sum(0)


def torchdiffeq(p: Problem, tolerances: tuple[float, ...], quick: bool) -> list[Rule]:
    odeint = bring("torchdiffeq").odeint

    def rule(settings: str, log: bool, method: str, **options: Any) -> Rule:
        def run(p: Problem) -> tuple[Tensor, int]:
            field = p.field()
            ends = torch.tensor([p.begin, p.end], dtype=p.x.dtype)

            def slope(u: Tensor, state: State) -> State:
                if not log:
                    return traced(field, u, state[0])
                t = torch.exp(u)
                v, div = traced(field, t, state[0])
                return t * v, t * div

            with torch.no_grad():
                start = (p.x, p.x.new_zeros(len(p.x)))
                y, change = odeint(slope, start, torch.log(ends) if log else ends, method=method, **options)
            return p.model.prior_log_prob(y[-1]) + change[-1], field.calls

        return Rule("torchdiffeq", settings, run, settings.rsplit(",", 1)[0])

    made = []
    for log in (False, True) if p.kind != "Flow" else (False,):
        word = "in log t, " if log else ""
        for method in ("dopri5", "dopri8"):
            made += [rule(f"{word}{method}, {t:.0e}", log, method, rtol=t, atol=t) for t in tolerances]
        if not quick and (log or p.kind == "Flow"):
            for n in (16, 32, 64):
                size = (math.log(p.end / p.begin) if log else p.end - p.begin) / n
                made.append(rule(f"{word}rk4, {n} steps", log, "rk4", options={"step_size": size}))
    return made


def flow_matching(p: Problem, tolerances: tuple[float, ...], quick: bool) -> list[Rule]:
    solver = bring("flow_matching.solver").ODESolver

    def rule(settings: str, **options: Any) -> Rule:
        def run(p: Problem) -> tuple[Tensor, int]:
            field = p.field()
            own = solver(velocity_model=lambda x, t: -field(1 - t, x))  # its time runs from noise to data
            ends = torch.tensor([1.0, 0.0], dtype=p.x.dtype)
            _, value = own.compute_likelihood(
                x_1=p.x.clone(), log_p0=p.model.prior_log_prob, time_grid=ends, exact_divergence=True,
                **{"step_size": None, **options},
            )  # fmt: skip
            return value.detach(), field.calls

        return Rule("flow_matching", settings, run, options["method"])

    made = [rule(f"{m}, {t:.0e}", method=m, atol=t, rtol=t) for m in ("dopri5", "dopri8") for t in tolerances]
    if not quick:
        for method in ("midpoint", "heun3", "rk4"):
            made += [rule(f"{method}, step {h:g}", method=method, step_size=h) for h in (0.1, 0.05, 0.02, 0.01)]
    return made


def zuko(p: Problem, tolerances: tuple[float, ...]) -> list[Rule]:
    transform = bring("zuko.transforms").FreeFormJacobianTransform

    def rule(tolerance: float, log: bool) -> Rule:
        def run(p: Problem) -> tuple[Tensor, int]:
            field = p.field()
            ends = (math.log(p.begin), math.log(p.end)) if log else (p.begin, p.end)
            slope = (lambda u, x: torch.exp(u) * field(torch.exp(u), x)) if log else field
            with torch.no_grad():
                own = transform(slope, *ends, atol=tolerance, rtol=tolerance, exact=True)
                y, change = own.call_and_ladj(p.x)
            return p.model.prior_log_prob(y) + change, field.calls

        return Rule("zuko", f"{'in log t, ' if log else ''}dopri5, {tolerance:.0e}", run, f"log: {log}")

    return [rule(t, log) for log in ((False, True) if p.kind != "Flow" else (False,)) for t in tolerances]


def score_sde(p: Problem, tolerances: tuple[float, ...]) -> list[Rule]:
    """Song et al.'s black box: scipy's RK45 on the flattened state, one probe of random signs held fixed."""
    solve_ivp = bring("scipy.integrate").solve_ivp

    def rule(tolerance: float, exact: bool) -> Rule:
        def run(p: Problem) -> tuple[Tensor, int]:
            field, shape, size = p.field(), p.x.shape, p.x.numel()
            z = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(p.x) * 2 - 1

            def slope(t: float, state: Any) -> Any:
                x, at = torch.from_numpy(state[:size]).reshape(shape), torch.tensor(t, dtype=p.x.dtype)
                if exact:
                    v, div = traced(field, at, x)
                else:
                    with torch.enable_grad():
                        x = x.requires_grad_()
                        v = field(at, x)
                        div = (torch.autograd.grad((v * z).sum(), x)[0] * z).sum(1)
                return torch.cat([v.detach().flatten(), div]).numpy()

            start = torch.cat([p.x.flatten(), p.x.new_zeros(len(p.x))]).numpy()
            end = solve_ivp(slope, (p.begin, p.end), start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1]
            y, change = torch.from_numpy(end[:size]).reshape(shape), torch.from_numpy(end[size:])
            return p.model.prior_log_prob(y) + change, field.calls

        name = "score_sde's formula" + (" with an exact trace" if exact else "")
        return Rule(name, f"RK45, {tolerance:.0e}" + ("" if exact else ", one probe"), run, "RK45" if exact else "")

    return [rule(1e-5, exact=False), *(rule(t, exact=True) for t in tolerances)]


def k_diffusion(p: Problem) -> list[Rule]:
    sampling = bring("k_diffusion.sampling")

    def rule(tolerance: float) -> Rule:
        def run(p: Problem) -> tuple[Tensor, int]:
            field = p.field()

            def denoiser(x: Tensor, sigma: Tensor) -> Tensor:  # of its slope (x - D) / sigma
                return x - sigma[0] * field(sigma[0], x)

            torch.manual_seed(0)  # it draws its probe from the global generator
            value, _ = sampling.log_likelihood(denoiser, p.x, p.begin, p.end, atol=tolerance, rtol=tolerance)
            return value, field.calls

        return Rule("k-diffusion", f"dopri5, {tolerance:.0e}, one probe", run)

    return [rule(1e-4), rule(1e-6)]
