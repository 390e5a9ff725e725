"""Law 6c: samples of a mixture are as far from the truth as the truth from itself, for every kind of solver and SDE."""

import pytest

import sde
from sde.checks import LawViolation, samples

MIXTURE = sde.Mixture([0.2, 0.3, 0.5], [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.15, 0.05], [0.05, 0.05], [0.1, 0.3]])

SDES = {
    "VP": sde.VP(),
    "SubVP": sde.SubVP(),
    "VE": sde.VE(),
    "EDM": sde.EDM(),
    "Cosine": sde.Cosine(),
    "Flow": sde.Flow(),
    "OrnsteinUhlenbeck": sde.OrnsteinUhlenbeck(),
    "Tabulated": sde.Tabulated.linear(),
    "CLD": sde.CLD(),
    "ThirdOrderLangevin": sde.ThirdOrderLangevin(),
}
# Steps at which the error of a run lies below what 2000 samples can tell.
SOLVERS = {
    "Euler": (sde.Euler(), 0.0, 256),
    "Euler, eta=.5": (sde.Euler(), 0.5, 256),
    "EulerMaruyama": (sde.EulerMaruyama(), 1.0, 256),
    "Heun": (sde.Heun(), 0.0, 48),
    "Heun, eta=1": (sde.Heun(), 1.0, 96),
    "RK4": (sde.RK4(), 0.0, 48),
    "RK4, eta=1": (sde.RK4(), 1.0, 96),
    "ReverseDiffusion": (sde.ReverseDiffusion(), 1.0, 512),
    "Ancestral": (sde.Ancestral(), 1.0, 256),
    "DDIM": (sde.DDIM(), 0.0, 256),
    "DDIM, eta=.5": (sde.DDIM(), 0.5, 256),
    "Adams": (sde.Adams(), 0.0, 32),
    "Langevin": (sde.PredictorCorrector(sde.Ancestral(), sde.AnnealedLangevin(0.05)), 1.0, 256),
}
MORE = {("Heun", "VE"): 192, ("Euler", "ThirdOrderLangevin"): 1024}
"""Pairs that need more: a grid from 50 times the data's scale down, and a stiff system by an explicit rule."""
QUICK = [
    ("EulerMaruyama", "VP"),
    ("Heun", "EDM"),
    ("Adams", "Flow"),
    ("Ancestral", "Tabulated"),
    ("DDIM, eta=.5", "Cosine"),
    ("ReverseDiffusion", "SubVP"),
    ("RK4, eta=1", "OrnsteinUhlenbeck"),
    ("Langevin", "VE"),
    ("Heun", "CLD"),
]


def far_from_the_truth(solver, forward):
    rule, eta, steps = SOLVERS[solver]
    steps = MORE.get((solver, forward), steps)
    return samples(sde.ExactScore(MIXTURE, SDES[forward]), rule, steps, eta=eta)


@pytest.mark.parametrize(("solver", "forward"), QUICK)
def test_samples(solver, forward):
    far_from_the_truth(solver, forward)


@pytest.mark.nightly
@pytest.mark.parametrize("forward", SDES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_of_the_full_product(solver, forward):
    rule, eta, _ = SOLVERS[solver]
    try:
        rule.check(sde.ReverseSDE(sde.ExactScore(MIXTURE, SDES[forward]), eta))
    except ValueError:
        pytest.skip("refused")
    far_from_the_truth(solver, forward)


class Halved(sde.Euler):
    """Euler–Maruyama with half of its noise."""

    def step(self, sde, x, t, s, noise):
        drifted = x + (float(s) - float(t)) * sde.drift(x, t)
        return drifted + 0.5 * sde.diffusion(x, t, noise.increment(x, t, s))


def test_the_check_can_fail():
    with pytest.raises(LawViolation, match=r"law 6c is broken by Halved on VP: sliced W2 is 0\.\d+, two draws of"):
        samples(sde.ExactScore(MIXTURE, SDES["VP"]), Halved(), 128, eta=1.0)
    with pytest.raises(LawViolation, match="with more than 4 steps"):
        samples(sde.ExactScore(MIXTURE, SDES["EDM"]), sde.Euler(), 4)


def test_a_wrong_weight_is_seen():
    """What sampling noise alone leaves is small enough to tell .20 from .26."""

    class Skewed(sde.ExactScore):
        def forward(self, x, t, **cond):
            return self.skewed(x, t)

    model = Skewed(MIXTURE, SDES["VP"])
    weights = [0.3, 0.3, 0.4]
    model.skewed = sde.ExactScore(sde.Mixture(weights, MIXTURE.means, MIXTURE.covs), SDES["VP"])
    with pytest.raises(LawViolation, match="law 6c"):
        samples(model, sde.Heun(), 64)
