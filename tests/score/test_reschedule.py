"""A model of one schedule under another: equal to the exact model of that other one."""

import pytest
import torch

import sde

TARGET = sde.Mixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])


@pytest.mark.parametrize("trained", [sde.VP(), sde.Flow(), sde.EDM(1e-4, 500.0), sde.Tabulated.linear()])
def test_rescheduled_exact_models_are_exact(trained: sde.ScalarSDE, any_sde: sde.ForwardSDE) -> None:
    got = sde.Reschedule(sde.ExactScore(TARGET, trained), any_sde)
    exact = sde.ExactScore(TARGET, any_sde)
    for t in (0.3, 0.5, 0.8):
        t = any_sde.t_min + t * (any_sde.t_max - any_sde.t_min)
        x = any_sde.perturb(TARGET.sample(5, torch.Generator().manual_seed(0)), t, torch.Generator().manual_seed(1)).x
        for time in (t, torch.full((5,), t, dtype=torch.float64)):
            torch.testing.assert_close(got(x, time).x0, exact(x, time).x0, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(got(x, time).score, exact(x, time).score, rtol=1e-4, atol=1e-4)


def test_beyond_the_trained_levels_the_nearest_one_answers() -> None:
    model = sde.Reschedule(sde.ExactScore(TARGET, sde.EDM(0.1, 10.0)), sde.EDM(0.01, 100.0))
    x = torch.tensor([[0.9, 0.4]], dtype=torch.float64)
    low = model(x, 0.01).x0
    factor = (1 + 0.1**2) ** 0.5 / (1 + 0.01**2) ** 0.5
    torch.testing.assert_close(low, sde.ExactScore(TARGET, sde.EDM())(factor * x, 0.1).x0)
    far = model(100 * x, 100.0).x0
    torch.testing.assert_close(
        far, sde.ExactScore(TARGET, sde.EDM(0.1, 10.0))(10.05 / 100.005 * 100 * x, 10.0).x0, rtol=1e-3, atol=1e-3
    )


def test_where_alpha_is_0_the_last_trained_time_answers() -> None:
    model = sde.Reschedule(sde.ExactScore(TARGET, sde.VP()), sde.Flow())
    point = model(torch.randn(5, 2, dtype=torch.float64), 1.0)
    assert bool(torch.isfinite(point.x0).all())
    torch.testing.assert_close(point.x0, TARGET.mean.expand(5, 2), atol=0.05, rtol=0)


def test_a_rescheduled_model_samples_its_data() -> None:
    """Heun along EDM's noise levels with a model of VP: the modes and their weights."""
    target = sde.Mixture([0.3, 0.7], [[-2.0], [2.0]], [0.04, 0.04])
    model = sde.Reschedule(sde.ExactScore(target, sde.VP()), sde.EDM(0.01, 80.0))
    x = sde.sample(model, (4000, 1), steps=24, solver=sde.Heun(), generator=torch.Generator().manual_seed(0))
    right = (x > 0).double().mean().item()
    assert right == pytest.approx(0.7, abs=5 * (0.21 / 4000) ** 0.5)
    assert (x.abs() - 2).std().item() == pytest.approx(0.2, rel=0.1)


def test_prior_and_laws_are_those_of_the_new_sde() -> None:
    model = sde.Reschedule(sde.ExactScore(TARGET, sde.VP()), sde.CLD())
    x = model.prior(torch.zeros(5, 2, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert x.shape == (5, 2, 2)
    torch.testing.assert_close(model.prior_log_prob(x), sde.ExactScore(TARGET, sde.CLD()).prior_log_prob(x))
    assert sde.checks.model(sde.Reschedule(sde.ExactScore(TARGET, sde.VP()), sde.EDM(0.01, 80.0)), (2,))


def test_a_matrix_sde_cannot_be_rescheduled() -> None:
    with pytest.raises(ValueError, match="model was trained under CLD: only scalar SDEs can be rescheduled"):
        sde.Reschedule(sde.ExactScore(TARGET, sde.CLD()), sde.VP())
