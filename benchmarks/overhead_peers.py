"""The peers' loops, each called as its own documentation calls it, with a network that returns its input.

Where a peer has a lighter and a heavier way (a bare denoiser, a preconditioned one), both are measured, and the lighter
one counts as the peer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.overhead import Candidate, Identity
from benchmarks.peers import bring
from benchmarks.problems import FLOW, Step, compose


def torchdiffeq(x: Tensor) -> list[Candidate]:
    odeint = bring("torchdiffeq").odeint
    net = Identity()

    def make(method: str) -> Callable[[int], Callable[[], Tensor]]:
        def steps(n: int) -> Callable[[], Tensor]:
            t = torch.linspace(1, 0, n + 1)
            return lambda: odeint(lambda t, x: net(x, t), x, t, method=method)[-1]

        return steps

    def truth(rule: str) -> Callable[[int], Step]:
        return lambda n: FLOW.run(rule, torch.linspace(1, 0, n + 1).tolist())

    return [
        Candidate("Euler", "net", "torchdiffeq", "odeint euler", make("euler"), truth=truth("euler")),
        Candidate("Heun", "net", "torchdiffeq", "odeint heun2", make("heun2"), calls=2, truth=truth("heun")),
    ]


def flow_matching(x: Tensor) -> list[Candidate]:
    solvers, wrapper = bring("flow_matching.solver"), bring("flow_matching.utils").ModelWrapper

    class Velocity(wrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return self.model(x, t)

    solver = solvers.ODESolver(velocity_model=Velocity(Identity()))

    def make(method: str) -> Callable[[int], Callable[[], Tensor]]:
        def steps(n: int) -> Callable[[], Tensor]:
            t = torch.linspace(0, 1, n + 1)
            return lambda: solver.sample(time_grid=t, x_init=x, method=method, step_size=None)

        return steps

    def euler(n: int) -> Step:  # it runs up: 1 + h in place of 1 - h
        return (1 + 1 / n) ** n, 0.0

    def middle(n: int) -> Step:
        return (1 + 1 / n + 1 / (2 * n * n)) ** n, 0.0

    return [
        Candidate("Euler", "net", "flow_matching", "ODESolver euler", make("euler"), truth=euler),
        Candidate("Heun", "net", "flow_matching", "ODESolver midpoint", make("midpoint"), calls=2, truth=middle),
    ]


def k_diffusion(x: Tensor) -> list[Candidate]:
    sampling, layers = bring("k_diffusion.sampling"), bring("k_diffusion.layers")
    net = Identity()
    found = []
    for label, denoiser in {"": net, ", preconditioned": layers.Denoiser(net, sigma_data=1.0)}.items():
        for group, name, calls in (
            ("Euler", "sample_euler", 1),
            ("Heun", "sample_heun", 2),
            ("Ancestral", "sample_euler_ancestral", 1),
            ("Multistep", "sample_dpmpp_2m", 1),
        ):
            sampler = getattr(sampling, name)

            def make(n: int, sampler: Any = sampler, denoiser: Any = denoiser) -> Callable[[], Tensor]:
                # n + 1 positive sigmas: the step to 0, which these samplers treat apart, is left out.
                sigmas = sampling.get_sigmas_karras(n + 1, 0.002, 80.0)[:-1]
                return lambda: sampler(denoiser, x, sigmas, disable=True)

            still = (lambda n: (1.0, 0.0)) if not label and group in ("Euler", "Heun") else None
            kind = "model" if label else "net"
            found.append(Candidate(group, kind, "k-diffusion", name + label, make, calls=calls, truth=still))
    return found


def azula(x: Tensor) -> list[Candidate]:
    denoise, noise, sample = bring("azula.denoise"), bring("azula.noise"), bring("azula.sample")

    class Still(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = noise.VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return denoise.DiracPosterior(x_t)

    class Backbone(Identity):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))  # azula asks a backbone for its dtype

    found = []
    denoisers = {
        "": Still(),
        ", KarrasDenoiser": denoise.KarrasDenoiser(Backbone(), noise.VPSchedule()),
    }
    for label, denoiser in denoisers.items():
        for group, name, calls, extra in (
            ("Euler", "EulerSampler", 1, {}),
            ("Heun", "HeunSampler", 2, {}),
            ("DDIM", "DDIMSampler", 1, {}),
            ("Euler–Maruyama", "ItoSampler", 1, {"eta": 1.0}),
            ("Ancestral", "DDPMSampler", 1, {}),
            ("DDIM + Langevin", "PCSampler", 2, {}),
            ("Multistep", "xEABSampler", 1, {"order": 2}),
            ("Multistep", "vABSampler", 1, {"order": 2}),
        ):

            def make(n: int, name: str = name, denoiser: Any = denoiser, extra: dict = extra) -> Callable[[], Tensor]:
                sampler = getattr(sample, name)(denoiser, steps=n, silent=True, **extra)
                return lambda: sampler(x)

            kind = "model" if label else "net"
            found.append(Candidate(group, kind, "azula", name + label, make, calls=calls))
    return found


def diffusers(x: Tensor) -> list[Candidate]:
    lib = bring("diffusers")
    net = Identity()
    found = []
    for group, name, options, calls in (
        ("Euler", "EulerDiscreteScheduler", {}, 1),
        ("Euler", "FlowMatchEulerDiscreteScheduler", {}, 1),
        ("Heun", "HeunDiscreteScheduler", {}, 2),
        ("DDIM", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, 1),
        ("Ancestral", "DDPMScheduler", {"clip_sample": False}, 1),
        ("Ancestral", "EulerAncestralDiscreteScheduler", {}, 1),
        ("Multistep", "DPMSolverMultistepScheduler", {}, 1),
        ("Multistep", "UniPCMultistepScheduler", {}, 1),
        ("Multistep", "DEISMultistepScheduler", {}, 1),
    ):

        def make(n: int, name: str = name, options: dict = options, calls: int = calls) -> Callable[[], Tensor]:
            scheduler = getattr(lib, name)(**options)
            scale = hasattr(scheduler, "scale_model_input")

            def run() -> Tensor:
                scheduler.set_timesteps(n)
                y = x
                for t in scheduler.timesteps:
                    given = scheduler.scale_model_input(y, t) if scale else y
                    y = scheduler.step(net(given, t), t, y).prev_sample
                return y

            return run

        truth = _ddim_of(lib.DDIMScheduler(**options)) if name == "DDIMScheduler" else None
        kind = "net" if name.startswith("FlowMatch") else "model"  # only this one takes the output as a velocity
        found.append(Candidate(group, kind, "diffusers", name, make, calls, truth, spared=calls - 1))
    return found


def _ddim_of(scheduler: Any) -> Callable[[int], Step]:
    """DDIM's a for eps = x on diffusers' own discrete table and spacing."""

    def truth(n: int) -> Step:
        bars, stride = scheduler.alphas_cumprod.double().tolist(), 1000 // n
        steps = []
        for t in range((n - 1) * stride, -1, -stride):
            at, to = bars[t], bars[max(t - stride, 0)]
            steps.append((math.sqrt(to / at) * (1 - math.sqrt(1 - at)) + math.sqrt(1 - to), 0.0))
        return compose(steps)

    return truth


def smalldiffusion(x: Tensor) -> list[Candidate]:
    lib, accelerate = bring("smalldiffusion"), bring("accelerate")

    class Net(nn.Module, lib.ModelMixin):
        input_dims = (x.shape[1],)

        def forward(self, x: Tensor, sigma: Tensor, cond: object = None) -> Tensor:
            return x

    net, accelerator = Net(), accelerate.Accelerator(cpu=True)

    def make(mu: float) -> Callable[[int], Callable[[], Tensor]]:
        def steps(n: int) -> Callable[[], Tensor]:
            sigmas = lib.ScheduleLogLinear(N=1000, sigma_min=0.01, sigma_max=10).sample_sigmas(n)

            def run() -> Tensor:
                *_, last = lib.samples(net, sigmas, mu=mu, batchsize=len(x), xt=x, accelerator=accelerator)
                return last

            return run

        return steps

    return [
        Candidate("DDIM", "net", "smalldiffusion", "samples(gam=1, mu=0)", make(0.0)),
        Candidate("Ancestral", "net", "smalldiffusion", "samples(gam=1, mu=.5)", make(0.5)),
    ]


def torchsde(x: Tensor) -> list[Candidate]:
    sdeint = bring("torchsde").sdeint

    class Growth(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return y

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.ones_like(y)

    def make(n: int) -> Callable[[], Tensor]:
        t, growth = torch.tensor([0.0, 1.0]), Growth()
        return lambda: sdeint(growth, x, t, method="euler", dt=1 / n)[-1]

    return [Candidate("Euler–Maruyama", "net", "torchsde", "sdeint euler", make)]


def score_sde(x: Tensor) -> list[Candidate]:
    """The published loop of Song et al. (2021), which cannot be installed: its arithmetic, written anew.

    What it spends: times of shape (B,), and mean coefficient, standard deviation, drift and diffusion made of them at
    every evaluation; the predictor of the VP SDE is Euler–Maruyama, the corrector Langevin with norms.
    """
    net = Identity()

    def score(x: Tensor, t: Tensor) -> Tensor:
        spread = torch.sqrt(1 - torch.exp(2 * (-0.25 * t**2 * 19.9 - 0.5 * t * 0.1)))
        return -net(x, t * 999) / spread[:, None]

    def predict(x: Tensor, t: Tensor, n: int) -> Tensor:
        beta = 0.1 + t * 19.9
        drift, g = -0.5 * beta[:, None] * x, torch.sqrt(beta)
        drift = drift - g[:, None] ** 2 * score(x, t)
        return x - drift / n + g[:, None] * math.sqrt(1 / n) * torch.randn_like(x)

    def correct(x: Tensor, t: Tensor, rate: Tensor, n: int, snr: float = 0.16) -> Tensor:
        keep = rate[(t * (n - 1)).long()]
        s, z = score(x, t), torch.randn_like(x)
        e = 2 * keep * (snr * z.flatten(1).norm(dim=1).mean() / s.flatten(1).norm(dim=1).mean()) ** 2
        return x + e[:, None] * s + torch.sqrt(2 * e)[:, None] * z

    def make(langevin: bool) -> Callable[[int], Callable[[], Tensor]]:
        def steps(n: int) -> Callable[[], Tensor]:
            rate = 1 - torch.linspace(0.1 / n, min(20 / n, 0.9), n)

            def run() -> Tensor:
                y = x
                for now in torch.linspace(1, 1e-3, n):
                    t = torch.ones(len(x)) * now
                    if langevin:
                        y = correct(y, t, rate, n)
                    y = predict(y, t, n)
                return y

            return run

        return steps

    name = "score_sde (arithmetic)"
    return [
        Candidate("Euler–Maruyama", "model", name, "Euler–Maruyama", make(False)),
        Candidate("Euler–Maruyama + Langevin", "model", name, "Euler–Maruyama + Langevin", make(True), calls=2),
    ]


PEERS: dict[str, Callable[[Tensor], list[Candidate]]] = {
    "torchdiffeq": torchdiffeq,
    "flow_matching": flow_matching,
    "k-diffusion": k_diffusion,
    "azula": azula,
    "diffusers": diffusers,
    "smalldiffusion": smalldiffusion,
    "torchsde": torchsde,
    "score_sde": score_sde,
}
