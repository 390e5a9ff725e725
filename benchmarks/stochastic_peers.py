r"""The peers' stochastic samplers, on the levels of a `Field`.

torchsde integrates forward in a time of its own, s from 0 to 1. In x = y / sqrt(1 + r^2) the reverse SDE of every
scalar schedule is dx = (x / 2 + score) dB + dW_B backwards along B = log(1 + r^2), so that it is given

    drift (x / 2 + score) |B'(s)|,   diffusion sqrt |B'(s)|,       B(s) on a grid that is uniform in s.

score_sde (Song et al. 2021, 2011.13456) cannot be installed: its predictors and its corrector are written from the
paper, EDM's sampler with churn from algorithm 2 of Karras et al. (2022, 2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy_diffusers import listed
from benchmarks.accuracy_field import Field, ratio_at, time_of
from benchmarks.accuracy_peers import Rule, exact_denoiser, halves
from benchmarks.peers import bring

GRIDS = ("time", "quadratic", "log", "karras 7", "flow")


def every(budget: int) -> int:
    return budget


def _rule(library: str, name: str, run: Callable[[Field, Tensor], Tensor], steps: Any = every) -> Rule:
    return Rule(library, name, run, steps, GRIDS)


def azula() -> list[Rule]:
    sample = bring("azula.sample")

    def rule(name: str, steps: Callable[[int], int] = every, **options: Any) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            make = getattr(sample, name)
            return make(
                exact_denoiser(field, levels), steps=len(levels) - 1, silent=True, dtype=torch.float64, **options
            )(field.y)

        return _rule("azula", " ".join([name, *(f"{k} {v:g}" for k, v in options.items())]), run, steps)

    return [
        rule("DDPMSampler"),
        rule("DDIMSampler", eta=0.5),
        *(rule("ItoSampler", eta=eta) for eta in (0.25, 0.5, 1.0)),
        *(rule("PCSampler", halves, delta=delta) for delta in (0.01, 0.1, 0.3)),
    ]


def k_diffusion() -> list[Rule]:
    sampling = bring("k_diffusion.sampling")

    def rule(name: str, steps: Callable[[int], int] = every, **options: Any) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            return getattr(sampling, name)(field.denoise, field.y, levels, disable=True, **options)

        return _rule("k-diffusion", " ".join([name, *(f"{k} {v}" for k, v in options.items())]), run, steps)

    return [
        rule("sample_euler_ancestral"),
        rule("sample_dpm_2_ancestral", halves),
        rule("sample_dpmpp_2s_ancestral", halves),
        rule("sample_dpmpp_sde", halves),
        rule("sample_dpmpp_2m_sde"),
        rule("sample_dpmpp_2m_sde", solver_type="heun"),
        rule("sample_dpmpp_2m_sde", eta=0.5),
        rule("sample_dpmpp_3m_sde"),
        rule("sample_dpmpp_3m_sde", eta=0.5),
    ]


def diffusers() -> list[Rule]:
    lib = bring("diffusers")
    lib.utils.logging.set_verbosity_error()

    def unit(name: str, label: str, options: dict, each: dict | None = None) -> Rule:
        """A scheduler with `sigmas`, whose state has unit variance; it takes x0."""

        def run(field: Field, levels: Tensor) -> Tensor:
            scheduler = listed(name, levels, {"prediction_type": "sample", **options})
            scale = torch.sqrt(1 + levels**2)
            x = field.y / scale[0]
            for i in range(len(levels) - 1):
                x0 = field.denoise(x * scale[i], levels[i])
                x = scheduler.step(x0, scheduler.timesteps[i], x, **(each or {})).prev_sample
            return x * scale[-1]

        return _rule("diffusers", label, run)

    def ancestral(field: Field, levels: Tensor) -> Tensor:
        scheduler, y = listed("EulerAncestralDiscreteScheduler", levels, {}), field.y
        scheduler.is_scale_input_called, scheduler.timesteps = True, scheduler.timesteps.double()
        for i, r in enumerate(levels[:-1]):
            y = scheduler.step((y - field.denoise(y, r)) / r, scheduler.timesteps[i], y).prev_sample
        return y

    def ddim(eta: float) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            n, bars = len(levels) - 1, (1 / (1 + levels**2)).flip(0)
            scheduler = lib.DDIMScheduler(num_train_timesteps=n, clip_sample=False)
            scheduler.set_timesteps(n)
            scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = bars[1:], bars[0]
            x = field.y / torch.sqrt(1 + levels[0] ** 2)
            for t in scheduler.timesteps.tolist():
                scale = torch.sqrt(1 + levels[n - 1 - t] ** 2)
                eps = (x * scale - field.denoise(x * scale, levels[n - 1 - t])) / levels[n - 1 - t]
                x = scheduler.step(eps, t, x, eta=eta).prev_sample
            return x * torch.sqrt(1 + levels[-1] ** 2)

        return _rule("diffusers", f"DDIMScheduler eta {eta:g}", run)

    sde = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min", "lower_order_final": False}
    orders = ((2, "midpoint"), (2, "heun"), (3, "heun"))
    found = [
        unit("DPMSolverMultistepScheduler", f"SDE-DPM++ {k} {kind}", sde | {"solver_order": k, "solver_type": kind})
        for k, kind in orders
    ]
    for p, c in ((2, 2), (3, 3), (3, 4)):
        options = {"predictor_order": p, "corrector_order": c, "tau_func": lambda t: 1.0, "lower_order_final": False}
        found.append(unit("SASolverScheduler", f"SASolverScheduler tau 1, predictor {p}, corrector {c}", options))
    return [*found, ddim(0.5), ddim(1.0), _rule("diffusers", "EulerAncestralDiscreteScheduler", ancestral)]


def torchsde() -> list[Rule]:
    sdeint = bring("torchsde").sdeint

    class Reverse(nn.Module):
        noise_type = "diagonal"

        def __init__(self, field: Field, grid: str, kind: str) -> None:
            super().__init__()
            self.field, self.shape, self.sde_type = field, field.y.shape, kind
            self.grid, high, low = grid, torch.tensor(field.high).double(), torch.tensor(field.low).double()
            self.ends = {"time": (time_of(high), time_of(low)), "log": (high.log(), low.log())}.get(
                grid, (time_of(high).sqrt(), time_of(low).sqrt())
            )

        def level(self, s: Tensor) -> Tensor:
            at = torch.lerp(*self.ends, s.double())
            return at.exp() if self.grid == "log" else ratio_at(at if self.grid == "time" else at**2)

        def rate(self, s: Tensor) -> tuple[float, float]:
            """r and |B'| at s, by autograd."""
            with torch.enable_grad():
                s = s.detach().double().requires_grad_()
                r = self.level(s)
                (slope,) = torch.autograd.grad(torch.log1p(r**2), s)
            return float(r.detach()), float(-slope)

        def f(self, s: Tensor, x: Tensor) -> Tensor:
            r, rate = self.rate(s)
            scale, x = math.hypot(1, r), x.reshape(self.shape)
            score = (self.field.denoise(x * scale, r) / scale - x) * (scale / r) ** 2
            return ((x / 2 + score) * rate).reshape(len(x), -1)

        def g(self, s: Tensor, x: Tensor) -> Tensor:
            return torch.full_like(x, math.sqrt(self.rate(s)[1]))

    def rule(method: str, kind: str, calls: int, grid: str) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            n, ends = len(levels) - 1, torch.tensor([0.0, 1.0], dtype=torch.float64)
            start = field.y / math.hypot(1, field.high)
            x = sdeint(Reverse(field, grid, kind), start, ends, method=method, dt=1 / n)[-1]
            return x * math.hypot(1, field.low)

        return Rule("torchsde", f"sdeint {method}", run, lambda budget: budget // calls, (grid,))

    methods = {"euler": ("ito", 1), "srk": ("ito", 2), "euler_heun": ("stratonovich", 1), "heun": ("stratonovich", 2),
               "midpoint": ("stratonovich", 2)}  # fmt: skip
    return [
        rule(method, kind, calls, grid)
        for method, (kind, calls) in methods.items()
        for grid in ("time", "quadratic", "log")
    ]


def score_sde() -> list[Rule]:
    def score(field: Field, x: Tensor, r: float) -> Tensor:
        """Of x = y / sqrt(1 + r^2)."""
        scale = math.hypot(1, r)
        return (field.denoise(x * scale, r) / scale - x) * (scale / r) ** 2

    def predicted(vp: bool, corrected: float, last: bool) -> Callable[[Field, Tensor], Tensor]:
        """Euler–Maruyama on VP's x, or VE's discretised reverse diffusion on y; `last`: no noise in the last step."""

        def run(field: Field, levels: Tensor) -> Tensor:
            r = levels.tolist()
            x = field.y / math.hypot(1, r[0]) if vp else field.y
            times = time_of(levels).tolist()
            for i, (at, to) in enumerate(pairwise(r)):
                if corrected:
                    s = score(field, x, at) if vp else (field.denoise(x, at) - x) / at**2
                    z = torch.randn_like(x)
                    step = 2 * (corrected * z.norm(dim=1).mean() / s.norm(dim=1).mean()) ** 2
                    x = x + step * s + torch.sqrt(2 * step) * z
                if vp:
                    beta, h = 0.1 + 19.9 * times[i], times[i] - times[i + 1]
                    mean, spread = x + (x / 2 + score(field, x, at)) * beta * h, math.sqrt(beta * h)
                else:
                    spread = math.sqrt(at**2 - to**2)
                    mean = x + spread**2 * (field.denoise(x, at) - x) / at**2
                x = mean if last and i == len(r) - 2 else mean + spread * torch.randn_like(x)
            return x * math.hypot(1, r[-1]) if vp else x

        return run

    found = []
    for vp, name in ((True, "Euler–Maruyama, VP"), (False, "reverse diffusion, VE")):
        for last in (False, True):
            words = f"{name}{', denoised' if last else ''}"
            found.append(_rule("score_sde (formulas)", words, predicted(vp, 0.0, last)))
            found.append(_rule("score_sde (formulas)", f"{words}, Langevin .16", predicted(vp, 0.16, last), halves))
    return found


def edm() -> list[Rule]:
    def churned(churn: float, noise: float) -> Callable[[Field, Tensor], Tensor]:
        def run(field: Field, levels: Tensor) -> Tensor:
            r, y = levels.tolist(), field.y
            more = min(churn / (len(r) - 1), math.sqrt(2) - 1)
            for at, to in pairwise(r):
                up = at * (1 + more)
                y = y + math.sqrt(up**2 - at**2) * noise * torch.randn_like(y)
                d = (y - field.denoise(y, up)) / up
                z = y + (to - up) * d
                y = y + (to - up) * (d + (z - field.denoise(z, to)) / to) / 2
            return y

        return run

    return [
        _rule("EDM (formula)", f"churn {c:g}, S_noise {s:g}", churned(c, s), halves)
        for c, s in ((2.0, 1.0), (10.0, 1.0), (40.0, 1.0), (40.0, 1.003))
    ]


PEERS: dict[str, Callable[[], list[Rule]]] = {
    "azula": azula, "k-diffusion": k_diffusion, "diffusers": diffusers, "torchsde": torchsde, "score_sde": score_sde,
    "EDM": edm,
}  # fmt: skip
