"""diffusers' schedulers on given noise levels.

A scheduler looks its levels up in a table of a thousand training steps, rounds its times, and stops at the table's end
or at zero. Here `set_timesteps` is called first, as usual, and then its levels are replaced by ours in float64: neither
the rounding nor the table's ends are held against it. DDIM, PNDM and iPNDM index tables of alpha; they are given tables
that hold our levels. The state is x of unit variance, or y for the schedulers that are written for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy_field import Field
from benchmarks.accuracy_peers import Rule, halves
from benchmarks.peers import bring

Options = dict[str, Any]
OWN = ("karras 7", "log")
"""Grids of the schedulers whose rule is k-diffusion's too, and is run on all grids there."""


def multistep(name: str, label: str, options: Options, steps: Callable[[int], int] = lambda b: b) -> Rule:
    """A scheduler with `sigmas`, whose state has unit variance; it takes x0."""

    def run(field: Field, levels: Tensor) -> Tensor:
        scheduler = listed(name, levels, {"prediction_type": "sample", **options})
        scale = torch.sqrt(1 + levels**2)
        x = field.y / scale[0]
        for i in range(len(levels) - 1):
            x = scheduler.step(field.denoise(x * scale[i], levels[i]), scheduler.timesteps[i], x).prev_sample
        return x * scale[-1]

    return Rule("diffusers", label, run, steps)


def exploding(name: str, label: str, options: Options, each: Options | None = None) -> Rule:
    """A scheduler with `sigmas`, whose state is y, with one evaluation a step; it takes eps or EDM's F."""

    def run(field: Field, levels: Tensor) -> Tensor:
        scheduler, y = listed(name, levels, options), field.y
        scheduler.is_scale_input_called = True
        for i, r in enumerate(levels[:-1]):
            x0 = field.denoise(y, r)
            if name.startswith("EDM"):  # with sigma_data = 1: x0 = y / (1 + r^2) + r F / sqrt(1 + r^2)
                out = (x0 - y / (1 + r**2)) * torch.sqrt(1 + r**2) / r
            else:
                out = (y - x0) / r
            y = scheduler.step(out, scheduler.timesteps[i], y, **(each or {})).prev_sample
        return y

    return Rule("diffusers", label, run, grids=OWN)


def listed(name: str, levels: Tensor, options: Options) -> Any:
    """A scheduler whose levels are ours, the last one included."""
    scheduler = getattr(bring("diffusers"), name)(**options)
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = levels
    scheduler.timesteps = torch.arange(len(levels) - 1, 0, -1)
    scheduler._step_index = 0
    return scheduler


def two_stage(name: str, label: str) -> Rule:
    """Heun and KDPM2: two evaluations a step, each level twice in the list."""

    def run(field: Field, levels: Tensor) -> Tensor:
        lib, n = bring("diffusers"), len(levels) - 1
        scheduler = getattr(lib, name)()
        scheduler.set_timesteps(n)
        middle = torch.exp((levels[1:].log() + levels[:-1].log()) / 2)
        twice = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
        second = middle if name.startswith("KDPM2") else levels[1:]
        at = torch.stack([levels[:-1], second], 1).flatten()
        scheduler.sigmas = twice
        if name.startswith("KDPM2"):
            scheduler.sigmas_interpol = torch.cat([middle[:1], middle.repeat_interleave(2)])
        scheduler.timesteps, scheduler._step_index, y = torch.arange(2 * n, 0, -1), 0, field.y
        for i in range(2 * n):
            y = scheduler.step((y - field.denoise(y, at[i])) / at[i], scheduler.timesteps[i], y).prev_sample
        return y

    return Rule("diffusers", label, run, halves, OWN)


def indexed(name: str, label: str, options: Options, extra: int = 0) -> Rule:
    """DDIM and PNDM: one table entry to each step, `extra` evaluations at a repeated time; they take eps."""

    def run(field: Field, levels: Tensor) -> Tensor:
        n = len(levels) - 1
        bars = (1 / (1 + levels**2)).flip(0)
        scheduler = getattr(bring("diffusers"), name)(num_train_timesteps=n, **options)
        scheduler.set_timesteps(n)
        scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = bars[1:], bars[0]
        x = field.y / torch.sqrt(1 + levels[0] ** 2)
        for t in scheduler.timesteps.tolist():
            r = levels[n - 1 - t]
            scale = torch.sqrt(1 + r**2)
            x = scheduler.step((x * scale - field.denoise(x * scale, r)) * (1 / r), t, x).prev_sample
        return x * torch.sqrt(1 + levels[-1] ** 2)

    return Rule("diffusers", label, run, lambda budget: budget - extra if budget > extra + 1 else 0)


def ipndm() -> Rule:
    """iPNDM: Adams–Bashforth with the coefficients of equal steps, in eps and in the scheduler's own v."""

    def run(field: Field, levels: Tensor) -> Tensor:
        n, scale = len(levels) - 1, torch.sqrt(1 + levels**2)
        scheduler = bring("diffusers").IPNDMScheduler()
        scheduler.set_timesteps(n)
        scheduler.alphas, scheduler.betas = 1 / scale, levels / scale
        scheduler.timesteps, scheduler._step_index, x = torch.arange(n, 0, -1), 0, field.y / scale[0]
        for i in range(n):
            x0 = field.denoise(x * scale[i], levels[i])
            eps = (x * scale[i] - x0) / levels[i]
            v = eps * scheduler.alphas[i] - x0 * scheduler.betas[i]  # eps = beta x + alpha v
            x = scheduler.step(v, scheduler.timesteps[i], x).prev_sample
        return x * scale[-1]

    return Rule("diffusers", "IPNDMScheduler", run)


def dpm() -> list[Rule]:
    found = []
    kept = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    for algorithm in ("dpmsolver", "dpmsolver++"):
        for order, kind in ((2, "midpoint"), (2, "heun"), (3, "heun")):
            options = {"algorithm_type": algorithm, "solver_order": order, "solver_type": kind}
            words = f"{order} {algorithm} {kind}"
            found.append(
                multistep("DPMSolverMultistepScheduler", f"DPMSolverMultistepScheduler {words}", options | kept)
            )
            lower = options | {"final_sigmas_type": "sigma_min"}
            label = f"DPMSolverMultistepScheduler {words}, lower order at the end"
            found.append(multistep("DPMSolverMultistepScheduler", label, lower, lambda b: b if b < 15 else 0))
            label = f"DPMSolverSinglestepScheduler {words}"
            found.append(multistep("DPMSolverSinglestepScheduler", label, lower | {"lower_order_final": True}))
    return found


def unipc() -> list[Rule]:
    found = []
    for kind in ("bh1", "bh2"):
        for data in (True, False):
            for order in (2, 3, 4):
                for final in (True, False):
                    options = {
                        "solver_type": kind,
                        "predict_x0": data,
                        "solver_order": order,
                        "lower_order_final": final,
                    }
                    words = f"{order} {kind} {'x0' if data else 'eps'}{', lower order at the end' if final else ''}"
                    options["final_sigmas_type"] = "sigma_min"
                    found.append(multistep("UniPCMultistepScheduler", f"UniPCMultistepScheduler {words}", options))
    return found


def sa() -> list[Rule]:
    found = []
    for p, c in ((2, 2), (3, 3), (3, 4), (4, 4)):
        options = {"predictor_order": p, "corrector_order": c, "tau_func": lambda t: 0.0, "lower_order_final": False}
        found.append(multistep("SASolverScheduler", f"SASolverScheduler tau 0, predictor {p}, corrector {c}", options))
    return found


def others() -> list[Rule]:
    found = [
        multistep(
            "DEISMultistepScheduler", f"DEISMultistepScheduler {k}", {"solver_order": k, "lower_order_final": False}
        )
        for k in (2, 3)
    ]
    found += [
        multistep(
            "DEISMultistepScheduler",
            f"DEISMultistepScheduler {k}, lower order at the end",
            {"solver_order": k},
            lambda b: b if b < 15 else 0,
        )
        for k in (2, 3)
    ]
    found += [exploding("LMSDiscreteScheduler", f"LMSDiscreteScheduler {k}", {}, {"order": k}) for k in (2, 3, 4)]
    edm = {"sigma_data": 1.0, "final_sigmas_type": "sigma_min", "lower_order_final": False}
    for order, kind in ((2, "midpoint"), (2, "heun"), (3, "heun")):
        options = edm | {"solver_order": order, "solver_type": kind}
        found.append(
            exploding("EDMDPMSolverMultistepScheduler", f"EDMDPMSolverMultistepScheduler {order} {kind}", options)
        )
    return found


def diffusers() -> list[Rule]:
    """Every deterministic scheduler, at the orders it offers."""
    bring("diffusers").utils.logging.set_verbosity_error()
    return [
        indexed("DDIMScheduler", "DDIMScheduler", {"clip_sample": False}),
        indexed("PNDMScheduler", "PNDMScheduler, no Runge–Kutta start", {"skip_prk_steps": True}, 1),
        ipndm(),
        two_stage("HeunDiscreteScheduler", "HeunDiscreteScheduler"),
        two_stage("KDPM2DiscreteScheduler", "KDPM2DiscreteScheduler"),
        *dpm(), *unipc(), *sa(), *others(),
    ]  # fmt: skip
