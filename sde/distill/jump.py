r"""Jumps along the probability flow: one from any time to the data, and how several make a sample.

With the endpoints that a model reads off a state, x = alpha x0 + sigma eps, a step of DDIM goes from t to s by

    jump(x, t -> s) = alpha_s x0 + sigma_s eps = k x + (alpha_s - k alpha_t) x0,        k = sigma_s / sigma_t.

A consistency function f(x, t) is the end of the probability flow at t_min of the path through (x, t). Here it is a
model's jump to t_min, so that f(x, t_min) = x holds whatever the network says, under every scalar SDE. With the edm
parameterisation on EDM, data of scale s and e = sigma_min this is f = c_skip x + c_out F with

    c_skip = e / sigma + (1 - e / sigma) s^2 / (sigma^2 + s^2),      c_out = (sigma - e) s / sqrt(sigma^2 + s^2):

c_out is that of Song et al. (2023), 2303.01469, appendix C, and c_skip theirs to the order of e / s. A matrix SDE's
flow moves channels that the network does not see, so that it is refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.random import Noise
from sde.score import Model
from sde.shape import as_time, expand, scaled
from sde.solvers import ReverseSDE, Solver


def jump(model: Model, x: Tensor, t: float | Tensor, s: float | Tensor | None = None, **cond: Any) -> Tensor:
    r"""One step of DDIM with times of each sample's own; to t_min it is a consistency model's function f(x, t).

    Args:
        model: Any model under a scalar SDE.
        x: States, (B, \*D).
        t: Their times, () or (B,).
        s: Where to, () or (B,). Default: t_min.
        **cond: Passed to the model.

    Returns:
        States at s, (B, \*D).

    References:
        Song, Meng & Ermon (2021), 2010.02502, eq. 12; Song et al. (2023), 2303.01469, section 3.

    Example:
        >>> import torch, sde
        >>> from sde import distill
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.EDM())
        >>> x = torch.randn(4, 2)
        >>> torch.allclose(distill.jump(model, x, model.sde.t_min), x)  # the boundary condition
        True
    """
    sde = scalar(model)
    alpha, sigma = sde.levels(as_time(sde.t_min if s is None else s))
    return model(x, t, **cond).combine(expand(alpha, x), expand(sigma, x))


def flow_step(model: Model, x: Tensor, t: float | Tensor, s: float | Tensor, order: int = 2, **cond: Any) -> Tensor:
    r"""One step of the probability flow from t to s, each sample at times of its own: what a teacher says.

    With kappa = alpha / sigma the flow is d(x / sigma) = x0 d kappa, which is finite where alpha = 0. Order 1 holds x0
    (DDIM); order 2 takes the mean of x0 at both ends (Heun's rule in kappa).

    Args:
        model: The teacher.
        x: States at t, (B, \*D).
        t: Times, () or (B,).
        s: Times to go to, () or (B,).
        order: 1 or 2, the number of evaluations.
        **cond: Passed to the model.

    Raises:
        ValueError: If order is neither 1 nor 2, or the SDE is a matrix one.

    Example:
        >>> import torch, sde
        >>> from sde import distill
        >>> exact = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> distill.flow_step(exact, torch.ones(1, 1), 0.5, 0.48).round(decimals=3)  # the flow of N(0, 1) stands still
        tensor([[1.]])
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}: 2 is Heun's rule, with two evaluations")
    sde = scalar(model)
    k, c = span(sde, t, s)
    kept, c = scaled(expand(k, x), x), expand(c, x)
    x0 = model(x, t, **cond).x0
    y = kept + scaled(c, x0)
    return y if order == 1 else kept + scaled(c / 2, x0 + model(y, s, **cond).x0)


def span(sde: ScalarSDE, t: float | Tensor, s: float | Tensor) -> tuple[Tensor, Tensor]:
    """k and c of a step of DDIM, k x + c x0, from t to s.

    Example:
        >>> import sde
        >>> [round(float(c), 3) for c in span(sde.EDM(), 4.0, 1.0)]
        [0.25, 0.75]
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.levels(as_time(t)), sde.levels(as_time(s))
    k = sigma_s / sigma_t
    return k, alpha_s - k * alpha_t


def scalar(model: Model) -> ScalarSDE:
    """The model's SDE, or an error where it is no scalar one."""
    if not isinstance(model.sde, ScalarSDE):
        raise ValueError(
            f"{type(model.sde).__name__} is a matrix SDE, whose flow moves channels that the network does not see, so "
            "that one x0 does not tell where it ends: distil under a scalar SDE, EDM() or VP(), say"
        )
    return model.sde


class Multistep(Solver):
    """Multistep consistency sampling: jump to t_min, then noise that state anew up to the next time.

    x_s = (x_s | x_min = f(x, t)), the forward SDE's own transition; the last step is the jump alone. One step of it is
    one evaluation, and one step in all is a sample. It is made for a consistency model: as steps grow it does not
    converge to samples of a score model, whose jumps end at means.

    References:
        Song, Dhariwal, Chen & Sutskever (2023), 2303.01469, algorithm 1.

    Example:
        >>> import torch, sde
        >>> from sde import distill
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.EDM())  # an untrained one
        >>> sde.sample(model, (8, 2), steps=2, solver=distill.Multistep()).shape
        torch.Size([8, 2])
    """

    order = 0.0  # no claim: more steps are no finer solution of anything
    eta = 1.0
    ends = True

    def check(self, sde: SDE) -> None:
        """A model under a scalar SDE, and noise that is drawn anew."""
        if not isinstance(sde, ReverseSDE):
            raise ValueError(f"Multistep samples a model, got a {type(sde).__name__}: use sde.sample(model, ...)")
        scalar(sde.model)
        if sde.eta != 1:
            raise ValueError(f"Multistep draws all noise anew, which is eta=1, got eta={sde.eta:g}: leave eta out")

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        assert isinstance(sde, ReverseSDE)
        model, forward = sde.model, scalar(sde.model)
        end = min(float(s), forward.t_min)
        y = model.move(x, t, 0.0, *map(float, forward.levels(as_time(end))))
        return forward.transition(y, as_time(end), as_time(s), noise.normal(x, t, s)) if float(s) > end else y
