"""The peers' training, each as its own documentation writes it, around the network of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.peers import bring
from benchmarks.training import BATCH, RATE, Draw, Net, Train, Way, batches, midpoint


def flow_matching() -> Way:
    """The README's 2-D example: affine path, conditional OT scheduler, Adam."""
    paths, scheduler = bring("flow_matching.path"), bring("flow_matching.path.scheduler")
    solvers, wrapper = bring("flow_matching.solver"), bring("flow_matching.utils").ModelWrapper

    class Velocity(wrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return self.model(x, t)

    def begin(net: Net, data: Tensor) -> tuple[Train, Draw]:
        path = paths.AffineProbPath(scheduler=scheduler.CondOTScheduler())
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)

        def train(steps: int) -> None:
            for x1 in batches(data, steps):
                optimizer.zero_grad()
                x0 = torch.randn_like(x1)
                sample = path.sample(t=torch.rand(len(x1)), x_0=x0, x_1=x1)
                loss = torch.pow(net(sample.x_t, sample.t) - sample.dx_t, 2).mean()
                loss.backward()
                optimizer.step()

        def draw(n: int) -> Tensor:
            solver = solvers.ODESolver(velocity_model=Velocity(net))
            grid = torch.linspace(0, 1, 26)
            return solver.sample(time_grid=grid, x_init=torch.randn(n, 2), method="midpoint", step_size=None)

        return train, draw

    return Way("flow_matching", begin)


def torchcfm() -> Way:
    """The 2-D example, with sigma = 0 (its .1 would blur the data)."""
    matcher = bring("torchcfm.conditional_flow_matching").ConditionalFlowMatcher

    def begin(net: Net, data: Tensor) -> tuple[Train, Draw]:
        optimizer, matching = torch.optim.Adam(net.parameters(), lr=RATE), matcher(sigma=0.0)

        def train(steps: int) -> None:
            for x1 in batches(data, steps):
                optimizer.zero_grad()
                t, xt, ut = matching.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
                loss = torch.mean((net(xt, t) - ut) ** 2)
                loss.backward()
                optimizer.step()

        return train, lambda n: midpoint(net, n)

    return Way("torchcfm", begin)


def azula() -> Way:
    """The README: Karras' denoiser, VP schedule, Adam, uniform times."""
    denoise, noise, sample = bring("azula.denoise"), bring("azula.noise"), bring("azula.sample")

    def begin(net: Net, data: Tensor) -> tuple[Train, Draw]:
        denoiser = denoise.KarrasDenoiser(backbone=net, schedule=noise.VPSchedule())
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=RATE)

        def train(steps: int) -> None:
            for x in batches(data, steps):
                loss = denoiser.loss(x, torch.rand(len(x)))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        def draw(n: int) -> Tensor:
            sampler = sample.HeunSampler(denoiser, steps=25, silent=True)
            return sampler(sampler.init((n, 2)))

        return train, draw

    return Way("azula", begin)


def smalldiffusion() -> Way:
    """The README's toy example with its `training_loop`; `Scaled` input, as its image examples have it."""
    lib, accelerate = bring("smalldiffusion"), bring("accelerate")

    class Plain(nn.Module, lib.ModelMixin):
        input_dims = (2,)

        def __init__(self, net: Net) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, sigma: Tensor, cond: object = None) -> Tensor:
            return self.net(x, torch.log(sigma).reshape(-1))

    def begin(net: Net, data: Tensor) -> tuple[Train, Draw]:
        model, accelerator = lib.Scaled(Plain)(net), accelerate.Accelerator(cpu=True)
        schedule = lib.ScheduleLogLinear(N=200, sigma_min=0.005, sigma_max=10)
        loader = DataLoader(data, batch_size=BATCH, shuffle=True)
        trainer = lib.training_loop(loader, model, schedule, accelerator=accelerator, lr=RATE)
        next(trainer)  # it hands over a loss before the optimizer's step: from here on, one `next` is one step

        def train(steps: int) -> None:
            for _ in range(steps):
                next(trainer).loss.item()

        def draw(n: int) -> Tensor:
            sigmas = schedule.sample_sigmas(50)
            *_, last = lib.samples(model, sigmas, batchsize=n, accelerator=accelerator)
            return last

        return train, draw

    return Way("smalldiffusion", begin)


def diffusers() -> Way:
    """The tutorial "Train a diffusion model": accelerate, AdamW, warm-up and cosine, clipping, a bar with the loss."""
    lib, accelerate, optimization = bring("diffusers"), bring("accelerate"), bring("diffusers.optimization")
    from tqdm.auto import tqdm

    def begin(net: Net, data: Tensor) -> tuple[Train, Draw]:
        table = lib.DDPMScheduler(num_train_timesteps=1000)
        accelerator = accelerate.Accelerator(cpu=True)

        def train(steps: int) -> None:
            optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
            schedule = optimization.get_cosine_schedule_with_warmup(optimizer, min(500, steps // 10), steps)
            loader = DataLoader(data, batch_size=BATCH, shuffle=True)
            model, opt, loader, schedule = accelerator.prepare(net, optimizer, loader, schedule)
            bar, step = tqdm(total=steps), 0
            while step < steps:
                for clean in loader:
                    noise = torch.randn(clean.shape)
                    t = torch.randint(0, 1000, (len(clean),), dtype=torch.int64)
                    noisy = table.add_noise(clean, noise, t)
                    with accelerator.accumulate(model):
                        loss = nn.functional.mse_loss(model(noisy, t / 1000), noise)
                        accelerator.backward(loss)
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                        opt.step()
                        schedule.step()
                        opt.zero_grad()
                    bar.update(1)
                    bar.set_postfix(loss=loss.detach().item(), lr=schedule.get_last_lr()[0], step=step)
                    step += 1
                    if step == steps:
                        break
            bar.close()

        @torch.no_grad()
        def draw(n: int) -> Tensor:
            sampler = lib.DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
            sampler.set_timesteps(50)
            x = torch.randn(n, 2)
            for t in sampler.timesteps:
                x = sampler.step(net(x, t / 1000), t, x).prev_sample
            return x

        return train, draw

    return Way("diffusers tutorial", begin, scheduled=True)


PEERS: dict[str, Callable[[], Way]] = {
    "flow_matching": flow_matching,
    "torchcfm": torchcfm,
    "azula": azula,
    "smalldiffusion": smalldiffusion,
    "diffusers": diffusers,
}
