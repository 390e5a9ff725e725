"""Laws of the posterior methods: no observation, no noise, any SDE, any solver, samples by themselves, refusals."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sde
from sde import inverse

TARGET = sde.Mixture([0.4, 0.6], [[-1.0, 0.3, 0.5], [0.8, -0.2, 0.1]], [[0.3, 0.2, 0.4], [0.2, 0.3, 0.1]])
GAUSS = sde.Gaussian([0.5, -1.0, 0.2], [[1.0, 0.6, 0.1], [0.6, 0.5, 0.0], [0.1, 0.0, 0.3]])
SEEN = torch.tensor([True, True, False])
Y = torch.tensor([[0.7, -0.4, 0.0]], dtype=torch.float64)
Make = Callable[[sde.Model, inverse.Observation], sde.Model]
MODELS: dict[str, Make] = {name: getattr(inverse, name) for name in ("PiGDM", "MMPS", "TMPD", "DPS", "DiffPIR", "DDNM")}
SDES = {"VP": sde.VP, "EDM": sde.EDM, "Flow": sde.Flow, "SubVP": sde.SubVP, "CLD": sde.CLD}
MODELS["DPS, annealed"] = lambda m, o: inverse.DPS(m, o, annealed=True)
NOISELESS = ("DPS, annealed", "PiGDM", "MMPS", "DiffPIR", "DDNM")


def observed(noise: float = 0.3, seen: Tensor = SEEN, y: Tensor = Y) -> inverse.Observation:
    return inverse.Observation(inverse.Mask(seen), y, noise)


def model(forward: sde.ForwardSDE | None = None, target: sde.Mixture = TARGET) -> sde.ExactScore:
    return sde.ExactScore(target, forward or sde.VP())


def gens(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", MODELS)
def test_no_observation_is_the_model_itself(name: str, any_sde: sde.ForwardSDE) -> None:
    plain = model(any_sde)
    blind = MODELS[name](plain, observed(seen=torch.zeros(3, dtype=torch.bool)))
    for t in (any_sde.t_min, 0.5 * any_sde.t_max, 0.99 * any_sde.t_max):
        x = any_sde.perturb(TARGET.sample(4, gens(0)[0]), t, gens(1)[0]).x
        torch.testing.assert_close(blind(x, t).x0, plain(x, t).x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(blind(x, t).score, plain(x, t).score, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [inverse.DPSSolver, inverse.MCG])
def test_no_observation_is_the_solver_itself(kind: type[inverse.DPSSolver]) -> None:
    blind = kind(observed(seen=torch.zeros(3, dtype=torch.bool)))
    run = lambda solver: sde.sample(model(), (4, 3), steps=10, solver=solver, generator=gens(*range(4)))  # noqa: E731
    if kind is inverse.DPSSolver:
        torch.testing.assert_close(run(blind), run(sde.Ancestral()))
    assert bool(run(blind).isfinite().all())


@pytest.mark.parametrize("name", MODELS)
def test_each_sde(name: str, any_sde: sde.ForwardSDE) -> None:
    """One call for times () and (B,), float32 kept, finite on [t_min, t_max]."""
    method = MODELS[name](model(any_sde), observed())
    x0 = TARGET.sample(3, gens(0)[0])
    t = torch.linspace(any_sde.t_min, any_sde.t_max, 3)
    x = any_sde.perturb(x0, t, gens(1)[0]).x
    together = method(x, t)
    alone = torch.cat([method(x[i : i + 1], t[i]).x0 for i in range(3)])
    torch.testing.assert_close(together.x0, alone, rtol=1e-6, atol=1e-6)
    assert bool(together.velocity.isfinite().all())
    narrow = method(x.float(), t)
    assert narrow.x0.dtype is torch.float32
    torch.testing.assert_close(narrow.x0.double(), together.x0, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", SDES)
def test_samples_of_a_gaussian_are_the_posteriors(kind: str) -> None:
    n, law = 2000, GAUSS.posterior([[1.0, 0, 0], [0, 1.0, 0]], [0.7, -0.4], 0.3)
    method = inverse.MMPS(model(SDES[kind](), GAUSS), observed())
    solver = None if kind != "CLD" else sde.EulerMaruyama()
    x = sde.sample(method, (n, 3), steps=30 if solver is None else 200, solver=solver, generator=gens(0)[0])
    x = x[:, 0] if kind == "CLD" else x
    torch.testing.assert_close(x.mean(0), law.mean, rtol=0.0, atol=0.05)
    torch.testing.assert_close(torch.cov(x.T), law.cov, rtol=0.0, atol=0.06)


@pytest.mark.parametrize(
    "solver",
    [
        sde.Adams(3), sde.Heun(), sde.RK4(), sde.DDIM(), sde.Ancestral(), sde.EulerMaruyama(), sde.ReverseDiffusion(),
        sde.DPMSolverPP(), sde.DPMSolver(), sde.UniPC(), sde.DEIS(), sde.SEEDS(), sde.SASolver(), sde.SRA1(),
        sde.Churn(), sde.DormandPrince(), sde.AdaptiveHeun(), sde.Picard(),
        sde.PredictorCorrector(sde.DDIM(), sde.Langevin()), sde.Restart(sde.Heun(), [sde.Interval(0.1, 0.5)]),
    ],
    ids=lambda solver: type(solver).__name__,
)  # fmt: skip
def test_each_solver(solver: sde.Solver) -> None:
    """Means of the exact posterior of a Gaussian by moment matching, roughly, by few steps."""
    law = GAUSS.posterior([[1.0, 0, 0], [0, 1.0, 0]], [0.7, -0.4], 0.3)
    x = sde.sample(
        inverse.MMPS(model(sde.VP(), GAUSS), observed()), (400, 3), steps=40, solver=solver, generator=gens(0)[0]
    )
    torch.testing.assert_close(x.mean(0), law.mean, rtol=0.0, atol=0.15)
    assert float((GAUSS.mean - law.mean).abs().max()) > 0.3


@pytest.mark.parametrize("name", [*MODELS, "DPSSolver", "MCG", "PiGDMSolver"])
@pytest.mark.parametrize("kind", SDES)
def test_samples_do_not_know_their_neighbours(name: str, kind: str) -> None:
    forward = SDES[kind]()

    def run(y: Tensor, seeds: list[int]) -> Tensor:
        observation = observed(2.0, y=y)  # so much noise that no explicit step goes astray
        shape, generator = (len(seeds), 3), gens(*seeds)
        if name in MODELS:
            method, solver = MODELS[name](model(forward), observation), sde.Ancestral()
        elif name == "PiGDMSolver":
            method, solver = model(sde.VP() if kind == "CLD" else forward), inverse.PiGDMSolver(observation)
        else:
            method, solver = model(forward), getattr(inverse, name)(observation, zeta=0.1)
        return sde.sample(method, shape, steps=8, solver=solver, generator=generator)

    y = torch.cat([Y, Y + 0.5, Y - 0.3]) * SEEN
    torch.testing.assert_close(run(y, [1, 2, 3])[1:2], run(y[1:2], [2]), rtol=1e-6, atol=1e-6)


def exact_grid(forward: sde.ForwardSDE) -> Tensor:
    """To t = 0, where DDIM lands on x0 itself."""
    return torch.cat([sde.grids.karras(forward, 12) if isinstance(forward, sde.ScalarSDE) else torch.ones(0),
                      torch.zeros(1)])  # fmt: skip


@pytest.mark.parametrize("name", ["DDNM", "DiffPIR", "PiGDM", "MMPS", "MCG"])
@pytest.mark.parametrize("kind", ["VP", "EDM", "Flow", "SubVP"])
@pytest.mark.parametrize("solver", [sde.DDIM(), sde.Ancestral()], ids=["DDIM", "Ancestral"])
def test_without_noise_what_was_observed_is_kept(name: str, kind: str, solver: sde.Solver) -> None:
    forward, observation = SDES[kind](), observed(0.0)
    if name == "MCG":
        method, solver = model(forward), inverse.MCG(observation, zeta=0.1, solver=solver)
    else:
        method = MODELS[name](model(forward), observation)
    x = sde.sample(method, (5, 3), times=exact_grid(forward), solver=solver, generator=gens(0)[0])
    # Two of them put y in by C, which is (sigma / alpha)^2 times the identity in the limit only.
    exact = 1e-9 if name in ("DDNM", "DiffPIR", "MCG") else 2e-3
    torch.testing.assert_close(x[:, SEEN], Y[:, SEEN].expand(5, 2), rtol=0.0, atol=exact)
    assert float(x[:, 2].std()) > 0.1


def test_a_network_is_guided_in_any_mode() -> None:
    """Nodes of a grid and times as tensors, inference mode, parameters that ask for no gradient of their own."""
    torch.manual_seed(0)
    net = sde.ScoreModel(sde.nets.MLP(dim=3, width=16), sde.VP(), scale=0.8, mean=torch.tensor([0.1, 0.2, 0.3]))
    method = inverse.MMPS(net, observed(y=Y.float()))
    run = lambda: sde.sample(method, (4, 3), steps=6, generator=gens(0)[0])  # noqa: E731
    first = run()
    with torch.inference_mode():
        torch.testing.assert_close(run(), first)
    method.tabulates = False
    torch.testing.assert_close(run(), first, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for p in net.parameters())


def test_log_density_of_a_guided_gaussian() -> None:
    """Gradients go through the method itself: the divergence of its flow."""
    vp, law = sde.VP(), GAUSS.posterior([[1.0, 0, 0], [0, 1.0, 0]], [0.7, -0.4], 0.3)
    x = law.sample(3, gens(0)[0])
    got = sde.log_prob(inverse.MMPS(model(vp, GAUSS), observed()), x)
    exact = sde.ExactScore(law, vp).log_prob(x, vp.t_min)
    torch.testing.assert_close(got, exact, rtol=0.0, atol=0.02)


def test_refusals() -> None:
    vp = sde.VP()
    coupled = sde.ScoreModel(sde.nets.MLP(dim=3, width=8), vp, coupled=True)

    class Cube(inverse.Operator):
        def forward(self, x: Tensor) -> Tensor:
            return x**3

    for name, make in MODELS.items():
        if name == "DPS, annealed":
            make(model(), observed(0.0))
            continue
        with pytest.raises(ValueError, match=f"{name} adds the gradient .* train with coupling=None"):
            make(coupled, observed())
        if name not in NOISELESS:
            with pytest.raises(ValueError, match=f"{name} divides by the observation's noise"):
                make(model(), observed(0.0))
        if name != "DPS":
            with pytest.raises(ValueError, match=f"{name} needs a linear operator"):
                make(model(), inverse.Observation(Cube([3]), Y, 0.3))
    with pytest.raises(ValueError, match="coupling=None"):
        sde.sample(coupled, (2, 3), solver=inverse.DPSSolver(observed()), steps=2)
    with pytest.raises(ValueError, match="MCG needs a linear operator"):
        inverse.MCG(inverse.Observation(Cube([3]), Y, 0.3))
    with pytest.raises(ValueError, match="PiGDMSolver needs a linear operator"):
        inverse.PiGDMSolver(inverse.Observation(Cube([3]), Y, 0.3))
    with pytest.raises(ValueError, match="which a matrix SDE has not: use PiGDM"):
        sde.sample(model(sde.CLD()), (2, 3), solver=inverse.PiGDMSolver(observed()), steps=2)
    with pytest.raises(ValueError, match="solver must evaluate once a step, got Heun"):
        inverse.DPSSolver(observed(), solver=sde.Heun())
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="zeta must be 0 or more"):
            inverse.DPSSolver(observed(), zeta=value)
        with pytest.raises(ValueError, match="weight must be 0 or more"):
            inverse.DPS(model(), observed(), weight=value)
        with pytest.raises(ValueError, match="weight must be positive"):
            inverse.DiffPIR(model(), observed(), weight=value)
    for count in (0, 1.5, True):
        with pytest.raises(ValueError, match="iterations must be a whole number"):
            inverse.MMPS(model(), observed(), iterations=count)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="observations for 3 samples"):
        inverse.DDNM(model(), observed(y=Y.expand(2, 3)))(torch.zeros(3, 3).double(), 0.5)
