r"""azula's and deepinv's own posterior samplers on the problems of `posterior`, each on grids that suit it.

Both take a denoiser D(y, r) = E[x0 | x0 + r n = y]. azula is given the VP schedule on a time u from 0 to 1 with
t = t_min + (1 - t_min) u^p: p = 1 is its own, uniform grid, p = 2 closer steps near the data. deepinv's own VP process
has the same schedule and takes the times t. In azula's DPS the norm of the residual is that of the whole batch; here it
is each sample's, which is what its code does with a batch of one.

deepinv imports torchvision, of which nothing is used here: `peers.bring` stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.peers import bring
from benchmarks.posterior import FORWARD, Problem, Rule
from sde import inverse

POWERS = (1, 2)
"""Of the grids."""


def _levels(steps: int, power: int) -> Tensor:
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return FORWARD.t_min + (1 - FORWARD.t_min) * u**power


def _scale() -> float:
    return float(FORWARD.levels(FORWARD.t_min)[0])


def azula() -> list[Rule]:
    guidance, sample, denoise = (bring(f"azula.{part}") for part in ("guidance", "sample", "denoise"))
    schedule, isotropic = bring("azula.noise").Schedule, bring("azula.linalg.covariance").IsotropicCovariance

    class VP(schedule):
        def __init__(self, power: int) -> None:
            self.power = power

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return FORWARD.levels(FORWARD.t_min + (1 - FORWARD.t_min) * t.double() ** self.power)

    class Exact(denoise.Denoiser):
        def __init__(self, given: Problem, power: int) -> None:
            super().__init__()
            self.given, self.vp = given, VP(power)

        @property
        def schedule(self) -> Any:
            return self.vp

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return denoise.DiracPosterior(mean=self.given.target.denoise(x_t, *map(float, self.vp(t))))

    def begun(sampler: Any, given: Problem) -> Tensor:
        return sampler(sampler.init(given.shape, dtype=torch.float64)) / _scale()

    def denoiser(method: str, words: str, make: Callable[[Any, Problem], Any], cost: float) -> list[Rule]:
        def rule(sampler: str, power: int) -> Rule:
            def run(given: Problem, steps: int, g: torch.Generator) -> Tensor:
                kind = getattr(sample, sampler)
                return begun(kind(make(Exact(given, power), given), steps=steps, silent=True), given)

            setting = f"{words}{sampler.removesuffix('Sampler')}, grid {power}"
            return Rule("azula", method, setting, run, cost)

        return [rule(s, p) for s in ("DDPMSampler", "DDIMSampler") for p in POWERS]

    def sampler(method: str, words: str, make: Callable[..., Any], cost: float, only: Any = None) -> list[Rule]:
        def rule(power: int) -> Rule:
            def run(given: Problem, steps: int, g: torch.Generator) -> Tensor:
                return begun(make(Exact(given, power), given, steps=steps, silent=True), given)

            return Rule("azula", method, f"{words}grid {power}", run, cost, only or (lambda given: True))

        return [rule(power) for power in POWERS]

    def moments(k: int) -> Callable[[Any, Problem], Any]:
        return lambda d, p: guidance.MMPSDenoiser(d, p.repeated.y, p.operator, isotropic(p.noise**2), iterations=k)

    class DPS(guidance.DPSSampler):
        def step(self, *args: Any, **kwargs: Any) -> Tensor:
            with patch.object(torch.linalg, "vector_norm", lambda r: (r**2).sum(1).sqrt().sum()):
                return super().step(*args, **kwargs)

    def dps(zeta: float) -> Callable[..., Any]:
        return lambda d, p, **given: DPS(d, p.repeated.y, p.operator, zeta=zeta, **given)

    def repaint(d: Any, p: Problem, **given: Any) -> Any:
        assert isinstance(p.operator, inverse.Mask)
        return guidance.RePaintSampler(d, p.repeated.y, p.operator.seen, **given)

    def tds(given: Problem, steps: int, power: int) -> Tensor:
        """A group for each y; the twist is PiGDM's, as in our own."""
        found = []
        for y in given.y:

            def twist(x0: Tensor, ratio: Tensor, y: Tensor = y) -> Tensor:
                r, v = y - given.operator(x0), given.target.scale**2
                solved = given.operator.solve(r, v / (1 + v / float(ratio) ** 2), given.noise)
                return -(r * solved) / 2

            kind = guidance.TDSSampler(Exact(given, power), twist, steps=steps, silent=True)
            found.append(kind(kind.init((given.samples, given.shape[1]), dtype=torch.float64)) / _scale())
        return torch.cat(found)

    return [
        *(r for z in (0.3, 1.0) for r in sampler("DPS", f"zeta {z:g}, ", dps(z), 2)),
        *sampler("PiGDM", "", lambda d, p, **o: guidance.PGDMSampler(
            d, p.repeated.y, p.operator, p.operator.pinv, eta=1.0, **o), 2),
        *(r for k in (1, 3) for r in denoiser("MMPS", f"{k} iterations, ", moments(k), 2 + k)),
        *denoiser("TMPD", "", lambda d, p: guidance.TMPDenoiser(d, p.repeated.y, p.operator, p.noise**2), 3),
        *denoiser("DiffPIR", "", lambda d, p: guidance.DiffPIRDenoiser(d, p.repeated.y, p.operator, p.noise**2), 1),
        *denoiser("JFPS", "", lambda d, p: guidance.JFPSDenoiser(
            d, p.repeated.y, p.operator, isotropic(p.noise**2), isotropic(p.target.scale**2)), 1),
        *sampler("RePaint", "3 times, ", repaint, 3, lambda p: isinstance(p.operator, inverse.Mask)),
        *(Rule("azula", "TDS", f"PiGDM's twist, grid {p}", lambda given, steps, g, p=p: tds(given, steps, p), 2)
          for p in POWERS),
    ]  # fmt: skip


def deepinv() -> list[Rule]:
    dinv, sampling = bring("deepinv"), bring("deepinv.sampling")

    def denoised(given: Problem, x: Tensor, sigma: Any) -> Tensor:
        ratio = max(float(torch.as_tensor(sigma).flatten()[0]), 1e-3)
        return given.target.denoise(x.double(), 1.0, ratio)

    def physics(given: Problem, unit: float = 1.0, shift: float = 0.0) -> Any:
        """A with its singular values, on x0 = (x - shift) unit; padded to d of them."""
        u, s, vt = torch.linalg.svd(given.operator.matrix(), full_matrices=True)
        d, m = len(vt), len(u)
        mask = torch.zeros(1, d).double()
        mask[0, : len(s)] = torch.where(s > 1e-9, s, 0.0)
        pad = lambda z: torch.nn.functional.pad(z, (0, max(0, d - m)))[:, :d]  # noqa: E731
        back = lambda z: torch.nn.functional.pad(z, (0, max(0, m - d)))[:, :m]  # noqa: E731
        return dinv.physics.DecomposablePhysics(
            U=lambda z: back(z.double()) @ u.T, U_adjoint=lambda y: pad(y.double() @ u), V=lambda z: z.double() @ vt,
            V_adjoint=lambda x: x.double() @ vt.T, mask=mask,
            noise_model=dinv.physics.GaussianNoise(sigma=given.noise / unit),
        )  # fmt: skip

    def posterior(method: str, words: str, make: Callable[..., Any], cost: float) -> list[Rule]:
        def rule(solver: str, power: int) -> Rule:
            def run(given: Problem, steps: int, g: torch.Generator) -> Tensor:
                run_with = lambda x, sigma, *a, **k: denoised(given, x, sigma)  # noqa: E731
                process = sampling.VariancePreservingDiffusion(alpha=1.0, denoiser=run_with, minus_one_one=False)
                kind = getattr(sampling, solver)(timesteps=_levels(steps, power))
                model = sampling.PosteriorDiffusion(
                    make(run_with), run_with, process, kind, minus_one_one=False, dtype=torch.float64
                )
                y = given.repeated.y
                return model(y, physics(given), x_init=given.shape, denoise_output=False) / _scale()

            return Rule("deepinv", method, f"{words}{solver.removesuffix('Solver')}, grid {power}", run, cost)

        return [rule(s, p) for s in ("DDPMSolver", "DDIMSolver") for p in POWERS]

    def ddrm(power: int) -> Rule:
        def run(given: Problem, steps: int, g: torch.Generator) -> Tensor:
            alpha, sigma = FORWARD.levels(_levels(steps, power)[:-1])
            model = sampling.DDRM(lambda x, s: denoised(given, x, s), sigmas=(sigma / alpha).tolist())
            return model(given.repeated.y, physics(given))

        return Rule("deepinv", "DDRM", f"grid {power}", run, 1)

    def diffpir(weight: float) -> Rule:
        """It cuts x0 at [0, 1]: data are put there, four times their scale on either side of the middle."""

        def run(given: Problem, steps: int, g: torch.Generator) -> Tensor:
            unit = 8 * given.target.scale
            inside = lambda x: x / unit + 0.5  # noqa: E731
            there = physics(given, unit)
            y = given.repeated.y / unit + there.A(torch.full(given.shape, 0.5).double())
            model = sampling.DiffPIR(
                lambda x, s: inside(denoised(given, (x - 0.5) * unit, s * unit)), dinv.optim.data_fidelity.L2(),
                sigma=given.noise / unit, max_iter=steps, lambda_=weight,
            )  # fmt: skip
            return (model(y, there) - 0.5) * unit

        return Rule("deepinv", "DiffPIR", f"weight {weight:g}", run, 1)

    return [
        *posterior("DPS", "norm, ", sampling.DPSDataFidelity, 2),
        *posterior("DPS", "annealed, ", lambda d: sampling.DPSDataFidelity(d, guidance="annealed"), 2),
        *posterior("PiGDM", "", sampling.PiGDMDataFidelity, 2),
        *posterior("MMPS", "3 iterations, ", sampling.MomentMatchingDataFidelity, 6),
        *(ddrm(power) for power in POWERS),
        *(diffpir(weight) for weight in (1.0, 7.0)),
    ]  # fmt: skip


PEERS: dict[str, Callable[[], list[Rule]]] = {"azula": azula, "deepinv": deepinv}
