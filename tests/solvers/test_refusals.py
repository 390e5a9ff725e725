"""What solvers and the loop refuse, and whether the message says what to do instead."""

import math

import pytest
import torch

import sde

TARGET = sde.Gaussian([0.0, 0.5], 0.5)


def reverse(forward=None, eta=0.0, coupled=False):
    model = sde.ExactScore(TARGET, forward or sde.VP())
    model.coupled = coupled
    return sde.ReverseSDE(model, eta)


def solve(process, solver, times=(1.0, 0.5, 0.1), x=None):
    return sde.integrate(process, torch.zeros(3, 2) if x is None else x, list(times), solver)


# Directions.


def test_a_reverse_sde_with_noise_runs_down_only():
    with pytest.raises(ValueError, match=r"ReverseSDE is noisy and runs down .*: use times.flip\(0\), or eta=0"):
        solve(reverse(eta=1.0), sde.Euler(), (0.1, 0.5, 1.0))
    assert solve(reverse(eta=0.0), sde.Euler(), (0.1, 0.5, 1.0)).isfinite().all()


@pytest.mark.parametrize("process", [sde.VP(), sde.BrownianMotion(), sde.DoubleWell()], ids=lambda p: type(p).__name__)
def test_a_forward_sde_runs_up_only(process):
    with pytest.raises(ValueError, match=rf"{type(process).__name__} is noisy and runs up .*: use times.flip\(0\)"):
        solve(process, sde.Euler())


# Noise that a solver cannot take.


@pytest.mark.parametrize("solver", [sde.Heun(), sde.RK4()], ids=lambda s: type(s).__name__)
def test_smooth_rules_refuse_noise_that_depends_on_the_state(solver):
    name = type(solver).__name__
    match = rf"{name} on GeometricBrownianMotion would converge to the Stratonovich solution.*: use Euler"
    with pytest.raises(ValueError, match=match):
        solve(sde.GeometricBrownianMotion(), solver, (0.0, 1.0))


@pytest.mark.parametrize("solver", [sde.DDIM(), sde.Ancestral()], ids=lambda s: type(s).__name__)
def test_ddim_takes_eta_up_to_1(solver):
    with pytest.raises(ValueError, match=r"takes eta up to 1, .* got eta=1.5: use Euler or ReverseDiffusion"):
        solve(reverse(eta=1.5), solver)


@pytest.mark.parametrize("eta", [-0.1, math.nan, math.inf])
def test_eta_that_is_no_amount_of_noise(eta):
    with pytest.raises(ValueError, match=r"eta must be 0 or more, got .*: 0 is the probability flow"):
        reverse(eta=eta)


# Solvers that need a model.


@pytest.mark.parametrize(
    "solver",
    [sde.DDIM(), sde.Ancestral(), sde.ReverseDiffusion(), sde.Adams(), sde.Langevin(), sde.AnnealedLangevin()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("process", [sde.DoubleWell(), sde.VP()], ids=lambda p: type(p).__name__)
def test_solvers_that_use_endpoints_refuse_a_plain_sde(solver, process):
    match = rf"{type(solver).__name__} uses the endpoints of a score model and cannot solve a {type(process).__name__}"
    with pytest.raises(ValueError, match=match):
        solve(process, solver, (0.1, 0.5))


def test_the_exact_transition_runs_forward_sdes():
    from sde.solvers.onestep import Transition

    assert solve(sde.VP(), Transition(), (0.1, 0.5)).isfinite().all()
    with pytest.raises(ValueError, match="Transition runs a ForwardSDE up in time, got ReverseSDE: use Euler"):
        solve(reverse(), Transition())


# Models without a score (law 11).


def test_a_coupled_model_takes_no_noise():
    with pytest.raises(
        ValueError, match=r"eta=1.0 needs a score, .* coupling .*: use eta=0, or train with coupling=None"
    ):
        reverse(sde.Flow(), 1.0, coupled=True)
    with pytest.raises(ValueError, match=r"eta=0.1 needs a score"):
        sde.sample(reverse(sde.Flow(), coupled=True).model, (2, 2), solver=sde.Euler(), eta=0.1)
    with pytest.raises(ValueError, match=r"eta=1.0 needs a score"):
        sde.sample(reverse(sde.Flow(), coupled=True).model, (2, 2), solver=sde.Ancestral())


@pytest.mark.parametrize("corrector", [sde.Langevin(), sde.AnnealedLangevin()], ids=lambda c: type(c).__name__)
def test_a_coupled_model_takes_no_corrector(corrector):
    process = reverse(sde.Flow(), coupled=True)
    match = (
        rf"{type(corrector).__name__} needs a score, .* coupling: leave the corrector out, or train with coupling=None"
    )
    for solver in (corrector, sde.PredictorCorrector(sde.Heun(), corrector)):
        with pytest.raises(ValueError, match=match):
            solve(process, solver)


def test_a_coupled_model_takes_every_ode_solver():
    process = reverse(sde.Flow(), coupled=True)
    for solver in (sde.Euler(), sde.Heun(), sde.RK4(), sde.DDIM(), sde.Adams()):
        assert solve(process, solver).isfinite().all()


# Grids.


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0], r"times must hold at least 2 times in a row, got shape \(1,\)"),
        ([], r"times must hold at least 2 times in a row, got shape \(0,\)"),
        ([[1.0, 0.5]], r"times must hold at least 2 times in a row, got shape \(1, 2\)"),
        (
            [1.0, 0.5, 0.5, 0.1],
            r"times must be finite and strictly increasing or decreasing, got \[1.0, 0.5, 0.5, 0.1\]",
        ),
        ([1.0, 0.5, 0.7], r"strictly increasing or decreasing"),
        ([0.5, 0.5], r"strictly increasing or decreasing"),
        ([1.0, math.nan], r"times must be finite"),
        ([math.inf, 0.1], r"times must be finite"),
        ([1.1, 0.1], r"times must lie in \[0, 1\] for VP, got 0.1 to 1.1"),
        ([1.0, -0.1], r"times must lie in \[0, 1\] for VP, got -0.1 to 1"),
    ],
)
def test_grids(times, message):
    with pytest.raises(ValueError, match=message):
        sde.integrate(reverse(), torch.zeros(3, 2), times, sde.Euler())


# States.


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((2, 2), math.nan), r"x holds 4 values that are not finite: clean it first"),
        (torch.tensor([[1.0, math.inf]]), r"x holds 1 values that are not finite"),
        (torch.zeros(3), r"x must be \(B, \*D\) with B at least 1, got shape \(3,\)"),
        (torch.zeros(0, 2), r"x must be \(B, \*D\) with B at least 1, got shape \(0, 2\)"),
        (torch.zeros(3, 5), r"x has shape \(3, 5\), this target needs \(B, 2\)"),
    ],
)
def test_states(x, message):
    with pytest.raises(ValueError, match=message):
        solve(reverse(), sde.Euler(), x=x)


def test_states_of_whole_numbers():
    with pytest.raises(TypeError, match=r"x must be floating, got torch.int64: use x.float\(\)"):
        solve(reverse(), sde.Euler(), x=torch.zeros(3, 2, dtype=torch.int64))


def test_the_loop_refuses_before_its_first_step():
    """At the call, not at the first `next` of a generator."""
    with pytest.raises(ValueError, match="not finite"):
        sde.trajectory(reverse(), torch.full((1, 2), math.nan), [1.0, 0.5], sde.Euler())


# `sample`, and what solvers are made with.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"shape is missing: pass shape=\(16, 2\), say, or a state x to start from"),
        ({"shape": (4,)}, r"shape must be \(B, \*D\) with every size at least 1, got \(4,\)"),
        ({"shape": (0, 2)}, r"shape must be .* got \(0, 2\)"),
        ({"shape": (4, -2)}, r"shape must be .* got \(4, -2\)"),
        ({"shape": (4, 3)}, r"shape is \(4, 3\), this target needs \(B, 2\): its samples"),
        ({"shape": (4, 2), "steps": 0}, r"steps must be a whole number of at least 1, got 0: pass steps=32, say"),
        ({"shape": (4, 2), "steps": 2.5}, r"steps must be a whole number of at least 1, got 2.5"),
        ({"shape": (4, 2), "times": [0.1, 1.0], "eta": 1.0, "solver": sde.Euler()}, r"runs down in time only"),
        ({"shape": (4, 2), "generator": [torch.Generator()] * 3}, r"generator holds 3 generators for a batch of 4"),
    ],
)
def test_sample(arguments, message):
    with pytest.raises(ValueError, match=message):
        sde.sample(reverse().model, **arguments)


class Exploding(sde.Wrapper):
    def forward(self, x, t, **cond):
        return sde.Point(self.sde, x, t, x * math.inf)


def test_samples_that_are_not_finite():
    with pytest.raises(ValueError, match=r"samples are not finite: use more steps, .* a weaker guidance"):
        sde.sample(Exploding(reverse().model), (2, 2), steps=2, progress=False)


@pytest.mark.parametrize("snr", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("corrector", [sde.Langevin, sde.AnnealedLangevin])
def test_signal_to_noise(corrector, snr):
    with pytest.raises(ValueError, match=r"snr must be positive, got .*: .16 is the paper's choice"):
        corrector(snr)


def test_no_corrector_steps():
    with pytest.raises(ValueError, match=r"steps must be at least 1, got 0: leave PredictorCorrector out"):
        sde.PredictorCorrector(sde.Euler(), steps=0)


def test_record_every_nothing():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        sde.record(iter([]), every=0)


def test_a_path_is_bound_to_its_first_state():
    path = sde.BrownianPath(torch.Generator().manual_seed(0))
    sde.integrate(reverse(eta=1.0), torch.zeros(3, 2), [1.0, 0.5], sde.Euler(), noise=path)
    with pytest.raises(ValueError, match=r"x has shape \(4, 2\) .*but this path was drawn for \(3, 2\)"):
        sde.integrate(reverse(eta=1.0), torch.zeros(4, 2), [1.0, 0.5], sde.Euler(), noise=path)
