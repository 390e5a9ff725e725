"""The laws over every forward SDE shipped, over other parameters of each, and over SDEs made wrong on purpose."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sde
from sde.checks import LawViolation
from sde.checks.laws import FORWARD


@pytest.mark.parametrize("law", FORWARD)
def test_law(any_sde: sde.ForwardSDE, law: str) -> None:
    FORWARD[law](any_sde)


@pytest.mark.nightly
def test_law_4_in_half_precision_and_odd_shapes(any_sde: sde.ForwardSDE) -> None:
    sde.checks.finite(any_sde, [(2, 1), (5, 3), (2, 1, 1, 1), (2, 2, 3, 5, 7)], [torch.float32, torch.float64])


@pytest.mark.nightly
def test_laws_on_larger_data(any_sde: sde.ForwardSDE) -> None:
    for law in (sde.checks.moments, sde.checks.actions, sde.checks.velocity, sde.checks.transitions, sde.checks.params):
        law(any_sde, event=(2, 3))


def test_dtype_is_kept_in_half_precision(any_sde: sde.ForwardSDE) -> None:
    x0 = torch.ones(3, 2, dtype=torch.bfloat16)
    for t in (0.5 * any_sde.t_max, torch.tensor(any_sde.t_max), torch.full((3,), 0.5 * any_sde.t_max)):
        point = any_sde.perturb(x0, t)
        for name in ("x", "velocity", "score", "eps"):
            assert getattr(point, name).dtype == torch.bfloat16


number = st.floats(0.05, 20.0)


@settings(max_examples=settings.default.max_examples // 3)
@given(low=st.floats(0.01, 2.0), high=st.floats(0.01, 30.0), t_max=st.floats(0.5, 2.0))
def test_law_0_for_any_beta(low: float, high: float, t_max: float) -> None:
    for kind in (sde.VP, sde.SubVP):
        if low + t_max * (high - low) > 0:
            sde.checks.moments(kind(low, high, t_max=t_max))
        else:
            with pytest.raises(ValueError, match="beta must stay positive up to t_max"):
                kind(low, high, t_max=t_max)


@settings(max_examples=settings.default.max_examples // 3)
@given(low=st.floats(1e-4, 0.1), ratio=st.floats(2.0, 1e4), s=st.floats(1e-3, 0.1), theta=number, noise=number)
def test_law_0_for_any_levels(low: float, ratio: float, s: float, theta: float, noise: float) -> None:
    sde.checks.moments(sde.VE(low, low * ratio))
    sde.checks.moments(sde.EDM(low, low * ratio))
    sde.checks.moments(sde.Cosine(s))
    sde.checks.moments(sde.OrnsteinUhlenbeck(theta, noise, t_max=5 / theta))


@settings(max_examples=settings.default.max_examples // 10)
@given(beta=st.floats(1.0, 6.0), mass=st.floats(0.1, 1.0), gamma=st.floats(0.02, 1.0))
def test_laws_for_any_langevin_system(beta: float, mass: float, gamma: float) -> None:
    for system in (sde.CLD(beta, mass=mass, gamma=gamma), sde.ThirdOrderLangevin(beta, spread=gamma)):
        sde.checks.moments(system)
        sde.checks.actions(system, rtol=1e-8)
        sde.checks.transitions(system, rtol=1e-6)


# What a reader writes.


class TwoLines(sde.ScalarSDE):
    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


class Faded(sde.ScalarSDE):
    def alpha(self, t: Tensor) -> Tensor:
        return 1 / (1 + t)

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 + t)


@pytest.mark.parametrize("mine", [TwoLines(), Faded()])
def test_an_sde_of_two_lines_passes(mine: sde.ForwardSDE) -> None:
    assert sde.checks.forward_sde(mine) == list(FORWARD)


def test_only_objects_that_are_forward_sdes_are_taken() -> None:
    with pytest.raises(TypeError, match=r"the class VP: pass MySDE\(\)"):
        sde.checks.forward_sde(sde.VP)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a BrownianMotion"):
        sde.checks.forward_sde(sde.BrownianMotion())  # type: ignore[arg-type]


# What must be caught: each mutant has one thing wrong, and the law that it breaks.

MUTANTS: dict[str, tuple[str, str, Callable[[], sde.ForwardSDE]]] = {}


def mutant(law: str, word: str, *args: object) -> Callable[[type], type]:
    """Register a class as a mutant that breaks a law; the message must hold the word."""

    def register(kind: type) -> type:
        MUTANTS[kind.__name__] = law, word, lambda: kind(*args)
        return kind

    return register


@mutant("0", "drift")
class IntegralOfBetaWithoutHalf(sde.VP):
    inverse = sde.ScalarSDE.inverse

    def integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + t**2 * (self.beta_max - self.beta_min)

    def rates(self, t: Tensor) -> tuple[Tensor, ...]:
        return sde.ScalarSDE.rates(self, t)  # in accord with the wrong integral: no other law could tell


@mutant("0", "diffusion")
class SigmaOfAnotherSDE(sde.VP):
    inverse = sde.ScalarSDE.inverse

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def rates(self, t: Tensor) -> tuple[Tensor, ...]:
        return sde.ScalarSDE.rates(self, t)


@mutant("0", "diffusion")
class PublishedNoiseWithoutRoot(sde.VP):
    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().published(t)
        return f, g**2


@mutant("3", "alpha' of rates")
class RateOfTheWrongSign(sde.VP):
    def rates(self, t: Tensor) -> tuple[Tensor, ...]:
        alpha, sigma, dalpha, dsigma = super().rates(t)
        return alpha, sigma, -dalpha, dsigma


@mutant("3", "sigma'")
class RateOfTheWrongSizeUnpublished(Faded):
    def rates(self, t: Tensor) -> tuple[Tensor, ...]:
        alpha, sigma, dalpha, dsigma = super().rates(t)
        return alpha, sigma, dalpha, 1.01 * dsigma


@mutant("0", "initial")
class StartNotStated(sde.ScalarSDE):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return 0.1 + t


@mutant("3", "log_snr")
class NoiseThatShrinks(sde.ScalarSDE):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(2 * t)


@mutant("4", "clock")
class InfiniteClock(sde.Flow):
    def clock(self, t: Tensor) -> Tensor:
        return -self.log_snr(t) / 8


@mutant("4", "shape")
class ClockOfOneNumber(sde.VP):
    def clock(self, t: Tensor) -> Tensor:
        return t.mean()


@mutant("1", "whiten")
class WhitenMultiplies(sde.VP):
    def whiten(self, r: Tensor, t: float | Tensor) -> Tensor:
        return self.color(r, t)


@mutant("1", "score")
class ScoreOfTheWrongSign(sde.VP):
    def score(self, eps: Tensor, t: float | Tensor) -> Tensor:
        return -super().score(eps, t)


@mutant("1", "score")
class ScoreNotTransposed(sde.CLD):
    def score(self, eps: Tensor, t: float | Tensor) -> Tensor:
        return -self.whiten(eps, t)


@mutant("1", "tilt")
class TiltNotTransposed(sde.CLD):
    def tilt(self, g: Tensor, t: float | Tensor) -> Tensor:
        return self.color(g, t)


@mutant("1", "unmean")
class UnmeanIsTheFirstChannel(sde.CLD):  # an inverse of A, and not the one in the metric of Sigma
    def unmean(self, r: Tensor, t: float | Tensor) -> Tensor:
        return r[:, 0] / self.factors(r, t)[0][0, 0].item()


@mutant("1", "logdet")
class LogdetOfOneCoordinate(sde.VP):
    def logdet(self, t: float | Tensor, x: Tensor) -> float | Tensor:
        return super().logdet(t, x) / x[0].numel()


@mutant("1", "log_residual")
class ResidualForgotten(sde.CLD):
    def log_residual(self, x: Tensor, t: float | Tensor) -> float | Tensor:
        return 0.0


@mutant("1", "statistic")
class StatisticOfAnotherVariance(sde.CLD):
    def statistic(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, float, float | Tensor]:
        y, alpha, sigma = super().statistic(x, t)
        return y, alpha, 1.001 * sigma


@mutant("0", "gain")
class GainWithoutSquare(sde.VP):
    def gain(self, s: Tensor, t: float | Tensor) -> Tensor:
        return self.diffusion(s, t, s)


@mutant("0", "drift")
class NoDrift(sde.VP):
    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        return torch.zeros_like(x)


@mutant("0", "drift")
class FrictionForgotten(sde.CLD):
    @property
    def F(self) -> list[list[float]]:
        return [[0.0, 1 / self.mass], [-1.0, 0.0]]


@mutant("2", "velocity")
class WholeScoreInVelocity(sde.CLD):
    def velocity(self, point: sde.Point) -> Tensor:
        return self.drift(point.x, point.t) - self.gain(self.score(point.eps, point.t), point.t)


@mutant("2", "reverse_drift")
class ReverseDriftForgetsEta(sde.VP):
    def reverse_drift(self, point: sde.Point, eta: float) -> Tensor:
        return self.velocity(point) - self.gain(point.score, point.t) / 2 * (eta > 0)


@mutant("3", "transition")
class TransitionForgetsThatDataFade(sde.VP):
    def kernel(self, x: Tensor, s: float | Tensor, t: float | Tensor) -> tuple[object, object]:
        a, _ = super().kernel(x, s, t)
        return a, self.levels_on(x, t)[1] ** 2 - self.levels_on(x, s)[1] ** 2


@mutant("3", "bridge")
class BridgeOfTheWrongVariance(sde.VP):
    def bridge_pair(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> tuple[object, object]:
        c, _ = super().bridge_pair(x, t, s)
        return c, self.kernel(x, s, t)[1]  # beta, where the posterior has beta tilde


@mutant("3", "bridge with x_t")
class BridgeOfIndependentEnds(sde.VP):  # has the moments of x_s, and nothing to do with x_t
    def bridge(self, x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor, z: Tensor) -> Tensor:
        return self.at(x0, s, z).x


@mutant("4", "dtype")
class DoubleForced(sde.VP):
    def mean(self, x0: Tensor, t: float | Tensor) -> Tensor:
        return super().mean(x0.double(), t)


@mutant("4", "not a number")
class FirstTimeForAll(sde.VP):
    def color(self, eps: Tensor, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor) and t.ndim:
            t = t[0] * 0.9
        return super().color(eps, t)


@mutant("4", "in a batch with a time for each")
class MeanTimeForAll(sde.VP):
    def color(self, eps: Tensor, t: float | Tensor) -> Tensor:
        return super().color(eps, t.mean() if isinstance(t, Tensor) else t)


@mutant("4", "node")
class NodesLookedUpAmiss(sde.VP):
    def levels_on(self, x: Tensor, t: float | Tensor) -> tuple[object, object]:
        if hasattr(t, "table"):
            t = t.table.all[t.index - 1]
        return super().levels_on(x, t)


@mutant("4", "velocity of a point is not finite")
class VelocityByWayOfTheDrift(sde.Flow):
    def velocity(self, point: sde.Point) -> Tensor:
        return self.drift(point.x, point.t) - self.gain(point.score, point.t) / 2


@mutant("4", "t_min")
class EndsExchanged(Faded):
    t_min, t_max = 1.0, 1e-3


@mutant("10", "seed")
class GeneratorIgnored(sde.VP):
    def perturb(self, x0: Tensor, t: float | Tensor, generator: object = None) -> sde.Point:
        return super().perturb(x0, t)


@mutant("10", "drawn in a batch")
class NoiseCentredOverTheBatch(sde.VP):
    def perturb(self, x0: Tensor, t: float | Tensor, generator: object = None) -> sde.Point:
        eps = super().perturb(x0, t, generator).eps
        return self.at(x0, t, eps - 0.1 * eps.mean(0))


@mutant("0", "alpha, entry", [0.9, 0.5, 0.1])
class TableMissed(sde.Tabulated):
    def log_snr(self, t: float | Tensor) -> Tensor:
        return 1.01 * super().log_snr(t)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    law, word, make = MUTANTS[name]
    with pytest.raises(LawViolation) as caught:
        sde.checks.forward_sde(make())
    assert caught.value.law == law, str(caught.value)
    assert word in str(caught.value)
    assert name in str(caught.value)


def test_message_names_law_quantity_time_and_numbers() -> None:
    with pytest.raises(LawViolation) as caught:
        sde.checks.moments(IntegralOfBetaWithoutHalf())
    message = str(caught.value)
    assert "law 0 is broken by IntegralOfBetaWithoutHalf(beta_min=0.1" in message
    assert "at t = 0.001 F, from drift, is -0.0699, expected -0.05995 (error 0.01, allowed 6e-11)" in message
    assert "check the integral" in message


def test_noise_that_shrinks_is_no_sde() -> None:
    with pytest.raises(LawViolation, match=r"G G', from gain, is -.*g\^2 is negative"):
        sde.checks.moments(NoiseThatShrinks())
