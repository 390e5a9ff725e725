"""The peers of the accuracy benchmark that are installed as packages; diffusers has a file of its own.

Each is called as its documentation says, with the denoiser of a `Field` and with levels of noise that its interface
takes. A rule is run on every grid of its list, a rule that chooses its own steps at every tolerance of a ladder, and
the best configuration of all is what a cell is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy_field import FORMS, GRIDS, Field, Form, by_scipy
from benchmarks.peers import bring

SEVERAL = tuple(GRIDS)
TOLERANCES = tuple(10 ** (-k / 4) for k in range(2, 30))


@dataclass(frozen=True)
class Rule:
    """A sampler along a grid of levels.

    Attributes:
        library: Whose it is.
        name: Which of its samplers, with its options.
        run: From a field and levels (n + 1,) to the states at the last one.
        steps: From a budget of evaluations to the steps of a run; 0 where it cannot be met.
        grids: Names of the grids it is run on.
    """

    library: str
    name: str
    run: Callable[[Field, Tensor], Tensor]
    steps: Callable[[int], int] = lambda budget: budget
    grids: tuple[str, ...] = SEVERAL


@dataclass(frozen=True)
class Adaptive:
    """A sampler that chooses its steps by a tolerance.

    Attributes:
        library: Whose it is.
        name: Which of its samplers, with its options.
        run: From a field and a tolerance to the states at the lowest level.
    """

    library: str
    name: str
    run: Callable[[Field, float], Tensor]


def halves(budget: int) -> int:
    return budget // 2


def exact_denoiser(field: Field, levels: Tensor) -> Any:
    """azula's interface to a field, on a schedule that is at the i-th level at the i-th of n equal steps in time."""
    denoise, noise = bring("azula.denoise"), bring("azula.noise")

    class Listed(noise.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), levels.flip(0)[(t * (len(levels) - 1)).round().long()]

    class Exact(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Listed()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return denoise.DiracPosterior(field.denoise(x_t, self.schedule(t)[1]))

    return Exact()


def azula() -> list[Rule]:
    sample = bring("azula.sample")

    def rule(name: str, steps: Callable[[int], int] = lambda budget: budget, **options: Any) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            n, sampler = len(levels) - 1, getattr(sample, name)
            return sampler(exact_denoiser(field, levels), steps=n, silent=True, dtype=torch.float64, **options)(field.y)

        return Rule("azula", " ".join([name, *map(str, options.values())]), run, steps)

    multistep = [(name, k) for name in ("zABSampler", "vABSampler", "zEABSampler", "xEABSampler") for k in range(2, 7)]
    return [
        rule("DDIMSampler"),
        rule("HeunSampler", halves),
        rule("vABSampler", order=1),
        rule("REABSampler", order=2),
        rule("REABSampler", order=3),
        *(rule(name, order=k) for name, k in multistep),
    ]


def k_diffusion() -> list[Rule | Adaptive]:
    sampling = bring("k_diffusion.sampling")

    def rule(name: str, steps: Callable[[int], int] = lambda budget: budget, **options: Any) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            return getattr(sampling, name)(field.denoise, field.y, levels, disable=True, **options)

        return Rule("k-diffusion", " ".join([name, *(f"{k} {v:g}" for k, v in options.items())]), run, steps)

    def typed(name: str, kind: str) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            return getattr(sampling, name)(field.denoise, field.y, levels, disable=True, eta=0.0, solver_type=kind)

        return Rule("k-diffusion", f"{name} eta 0 {kind}", run)

    def fast(field: Field, levels: Tensor) -> Tensor:
        ends = (torch.tensor(level, dtype=torch.float64) for level in (field.low, field.high))
        return sampling.sample_dpm_fast(field.denoise, field.y, *ends, len(levels) - 1, disable=True)

    def adaptive(order: int) -> Adaptive:
        def run(field: Field, tolerance: float) -> Tensor:
            ends = (torch.tensor(level, dtype=torch.float64) for level in (field.low, field.high))
            tolerances = {"rtol": tolerance, "atol": 0.156 * tolerance}  # in the ratio of its defaults
            return sampling.sample_dpm_adaptive(field.denoise, field.y, *ends, disable=True, order=order, **tolerances)

        return Adaptive("k-diffusion", f"sample_dpm_adaptive order {order}", run)

    return [
        rule("sample_heun", halves),
        rule("sample_dpm_2", halves),
        rule("sample_lms", order=4),
        rule("sample_dpmpp_2s_ancestral", halves, eta=0.0),
        rule("sample_dpmpp_2m"),
        typed("sample_dpmpp_2m_sde", "heun"),
        rule("sample_dpmpp_3m_sde", eta=0.0),
        Rule("k-diffusion", "sample_dpm_fast", fast, grids=("log",)),
        adaptive(2),
        adaptive(3),
    ]


def smalldiffusion() -> list[Rule]:
    lib, accelerate = bring("smalldiffusion"), bring("accelerate")

    class Net(nn.Module, lib.ModelMixin):
        def __init__(self, field: Field) -> None:
            super().__init__()
            self.field, self.input_dims = field, tuple(field.y.shape[1:])

        def forward(self, x: Tensor, sigma: Tensor, cond: object = None) -> Tensor:
            return (x - self.field.denoise(x, sigma)) / sigma

    accelerator = accelerate.Accelerator(cpu=True)

    def rule(gam: float) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            steps = lib.samples(Net(field), levels, gam=gam, mu=0.0, batchsize=1, xt=field.y, accelerator=accelerator)
            *_, last = steps
            return last

        return Rule("smalldiffusion", f"samples gam {gam:g}", run)

    return [rule(1.5), rule(2.0)]


def torchdiffeq() -> list[Rule | Adaptive]:
    """Its methods on three forms of the flow; flow_matching's and torchcfm's solvers are these."""
    odeint = bring("torchdiffeq").odeint

    def solve(field: Field, form: Form, times: Tensor, **options: Any) -> Tensor:
        return form.end(field, odeint(lambda s, u: form(field, s, u), form.begin(field), times, **options)[-1])

    def rule(method: str, form: Form, steps: Callable[[int], int], **options: Any) -> Rule:
        def run(field: Field, levels: Tensor) -> Tensor:
            times = torch.tensor([form.time(r) for r in levels.tolist()], dtype=torch.float64)
            return solve(field, form, times, method=method, options=options)

        return Rule("torchdiffeq", f"odeint {method} in {form.name}", run, steps)

    def adaptive(method: str, form: Form) -> Adaptive:
        def run(field: Field, tolerance: float) -> Tensor:
            ends = torch.tensor(form.ends(field), dtype=torch.float64)
            return solve(field, form, ends, method=method, rtol=tolerance, atol=tolerance)

        return Adaptive("torchdiffeq", f"odeint {method} in {form.name}", run)

    found: list[Rule | Adaptive] = []
    for form in FORMS:
        for method, calls in (("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)):
            found.append(rule(method, form, lambda budget, calls=calls: budget // calls))
        # Its first two steps are Runge-Kutta's of four evaluations.
        found.append(rule("explicit_adams", form, lambda budget: max(0, budget - 6), max_order=4))
        found += [adaptive(method, form) for method in ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")]
    return found


def scipy() -> list[Adaptive]:
    bring("scipy")

    def adaptive(method: str, form: Form) -> Adaptive:
        return Adaptive(
            "scipy",
            f"solve_ivp {method} in {form.name}",
            lambda field, tolerance: by_scipy(field, method, tolerance, form),
        )

    return [adaptive(method, form) for method in ("RK23", "RK45", "DOP853", "LSODA") for form in FORMS]


PEERS: dict[str, Callable[[], list]] = {
    "azula": azula, "k-diffusion": k_diffusion, "smalldiffusion": smalldiffusion, "torchdiffeq": torchdiffeq,
    "scipy": scipy,
}  # fmt: skip
