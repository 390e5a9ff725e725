"""DDIM and ancestral sampling equal diffusers' schedulers on the same network and the same noise."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

import sde


@pytest.fixture
def model():
    """An untrained eps network told integer timesteps, float64, on the linear table of 1000."""
    net = sde.nets.MLP(dim=12, width=32, depth=2, time="sinusoidal")
    torch.nn.init.normal_(net.outward.weight, std=0.2)
    return sde.ScoreModel(net, sde.Tabulated.linear(), "eps").double()


def scheduler(kind, model, **options):
    """A scheduler on the model's own table, in float64."""
    made = kind(num_train_timesteps=1000, clip_sample=False, **options)
    made.alphas_cumprod = model.sde._table
    made.one = made.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return made


def start_and_noise(steps, event=(3, 2, 2)):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(steps + 1, 4, *event, generator=generator, dtype=torch.float64)
    return draws[0], list(draws[1:])


def nodes_of(timesteps):
    """Entry i of a table stands at t = i + 1; the data at 0."""
    return [float(i) + 1 for i in timesteps] + [0.0]


def test_the_table_is_diffusers_own(model):
    theirs = DDPMScheduler(num_train_timesteps=1000).alphas_cumprod.double()
    torch.testing.assert_close(model.sde._table, theirs, rtol=2e-5, atol=0)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 20), ("trailing", 20), ("leading", 1000)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(model, eta, spacing, steps, given_noise):
    theirs = scheduler(DDIMScheduler, model, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    nodes = nodes_of(theirs.timesteps)[-41:]  # of every single entry the last 40, the data included
    start, draws = start_and_noise(len(nodes) - 1)
    x = start
    for node, z in zip(nodes, draws, strict=False):
        eps = model.net(x, torch.full((4,), node - 1, dtype=torch.float64))
        x = theirs.step(eps, int(node - 1), x, eta=eta, variance_noise=z).prev_sample
    ours = sde.integrate(sde.ReverseSDE(model, eta), start, nodes, sde.DDIM(), noise=given_noise(*draws))
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [10, 100])
def test_ancestral(model, steps, given_noise, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    theirs = scheduler(DDPMScheduler, model, variance_type="fixed_small")
    theirs.set_timesteps(steps)
    start, draws = start_and_noise(steps)
    left = list(draws)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: left.pop(0))
    x = start
    for t in theirs.timesteps:
        eps = model.net(x, torch.full((4,), float(t), dtype=torch.float64))
        x = theirs.step(eps, t, x).prev_sample
    noise = given_noise(*draws)
    ours = sde.integrate(sde.ReverseSDE(model, 1.0), start, nodes_of(theirs.timesteps), sde.Ancestral(), noise=noise)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("param", ["eps", "v", "x0"])
def test_other_outputs_and_float32(param, given_noise):
    """diffusers' own float32 table; v there is alpha eps - sigma x0, as here."""
    net = sde.nets.MLP(dim=12, width=32, depth=2, time="sinusoidal")
    torch.nn.init.normal_(net.outward.weight, std=0.2)
    kind = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[param]
    theirs = DDIMScheduler(clip_sample=False, prediction_type=kind)
    model = sde.ScoreModel(net, sde.Tabulated(theirs.alphas_cumprod), param)
    theirs.set_timesteps(20)
    start, _ = start_and_noise(0)
    x = start.float()
    for t in theirs.timesteps:
        x = theirs.step(net(x, torch.full((4,), float(t))), t, x).prev_sample
    ours = sde.integrate(sde.ReverseSDE(model), start.float(), nodes_of(theirs.timesteps), sde.DDIM())
    assert float((ours - x).norm() / x.norm()) < 1e-5


def test_our_noising_is_diffusers_add_noise(model):
    theirs = scheduler(DDPMScheduler, model)
    x0, (eps,) = start_and_noise(1)
    for t in (0, 17, 500, 999):
        ours = model.sde.at(x0, float(t) + 1, eps).x
        torch.testing.assert_close(ours, theirs.add_noise(x0, eps, torch.tensor([t])), rtol=1e-12, atol=1e-12)
