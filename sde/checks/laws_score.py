r"""Laws of score models: 5, 6a, 8 and 11.

Law 6a needs no training. From a known point (x0, eps) each parameterisation's target follows by the formula that its
paper prints; a network that answers with that target, whatever it is shown, must make a `ScoreModel` return the point,
and must have been shown the input that the paper feeds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde.checks.agree import agree, violated
from sde.checks.probe import FEW, Probe, times_of
from sde.forward import ForwardSDE, Point, ScalarSDE
from sde.nodes import Table
from sde.random import randn
from sde.score import CFG, ExactScore, Gaussian, Model, ScoreModel
from sde.score.param import PARAMS, SCALAR_ONLY

PROPERTIES = ("x0", "eps", "velocity", "score")


def exact(model: ExactScore, n: int = 4, dtype: torch.dtype = torch.float64, rtol: float | None = None) -> None:
    """Law 5: the score is the gradient of the log-density that the model states, at every time.

    Args:
        model: Exact score model; anything with `target`, `sde` and `log_prob(x, t)`.
        n: States at each time.
        dtype: Of the states.
        rtol: Relative tolerance. Default: 2000 eps.

    Raises:
        LawViolation: If the model breaks it.

    Example:
        >>> import sde
        >>> sde.checks.exact(sde.ExactScore(sde.Gaussian([0.0, 1.0], [[1.0, 0.5], [0.5, 1.0]]), sde.VP()))
    """
    sde, generator = model.sde, torch.Generator().manual_seed(8)
    rtol = 2000 * torch.finfo(dtype).eps if rtol is None else rtol
    for t in times_of(sde, FEW):
        x0 = model.target.sample(n, generator).to(dtype)
        x = sde.perturb(x0, t, generator).x.requires_grad_()
        log_p = model.log_prob(x, t)
        if log_p.shape != (n,) or log_p.dtype != dtype:
            raise violated("5", model, f"log_prob has shape {tuple(log_p.shape)} and dtype {log_p.dtype}", t)
        (slope,) = torch.autograd.grad(log_p.sum(), x)
        point = model(x.detach(), t)
        size = _score_size(sde, t, point)
        agree("5", model, "score", point.score, slope, size, t=t, rtol=rtol, hint="expected: autograd of log_prob")
        each = model.log_prob(x.detach(), torch.full((n,), t, dtype=torch.float64))
        if each.dtype != dtype:
            raise violated("5", model, f"log_prob with a time for each sample has dtype {each.dtype}, not {dtype}", t)
        agree("5", model, "log_prob with a time for each sample", each, log_p, log_p.abs() + 10, t=t, rtol=rtol)


def _score_size(sde: ForwardSDE, t: float, point: Point) -> Tensor:
    """Sum of the absolute terms of -L^-T L^-1 (x - A x0)."""
    at = Probe(sde, t, point.x0.shape[1:])
    x, x0 = (c.double().flatten(1).abs() for c in (point.x, point.x0))
    terms = x + x0 @ at.A.abs().T
    size = (terms @ at.W.abs().T @ at.S.abs().T).amax(1)
    return size.reshape(-1, *[1] * (point.x.ndim - 1))


class _Answer(nn.Module):
    """A network that gives one answer and remembers what it was shown."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.shown = answer, answer

    def forward(self, u: Tensor, c: Tensor) -> Tensor:
        self.shown = u
        return self.answer


def _literature(
    param: str, z: Tensor, eps: Tensor, rates: Sequence[float], s: float
) -> tuple[Tensor, Tensor, float, tuple[float, float]]:
    """What the paper regresses on, the size of its terms, the factor of its input, and p, q of F = p z + q eps."""
    alpha, sigma, dalpha, dsigma = rates
    r = (alpha**2 * s**2 + sigma**2) ** 0.5
    if param == "eps":  # Ho et al.: the noise
        return eps, eps.abs(), 1 / r, (0.0, 1.0)
    if param == "x0":  # the denoised datum, in units of its deviation
        return z / s, z.abs() / s, 1 / r, (1 / s, 0.0)
    if param == "v":  # Salimans & Ho: cos(phi) eps - sin(phi) z, tan(phi) = sigma / (alpha s)
        a, b = alpha * s / r, sigma / (s * r)
        return a * eps - b * z, a * eps.abs() + b * z.abs(), 1 / r, (-b, a)
    if param == "edm":  # Karras et al.: z = c_skip y + c_out F at the noise level sigma / alpha
        skipped = s**2 * alpha * (alpha * z + sigma * eps) / r**2
        out = sigma * s / r
        return (z - skipped) / out, (z.abs() + skipped.abs()) / out, 1 / r, (sigma / (s * r), -alpha * s / r)
    if param == "score":  # Song & Ermon: the score of x given x0
        return -eps / sigma, eps.abs() / sigma, 1 / r, (0.0, -1 / sigma)
    # Lipman et al.: the velocity, rescaled to the size that it has for data of unit variance.
    k = ((dalpha * s) ** 2 + dsigma**2) ** 0.5 / (dalpha**2 + dsigma**2) ** 0.5
    c_in = (alpha**2 + sigma**2) ** 0.5 / r
    p, q = dalpha / k, dsigma / k
    return p * z + q * eps, abs(p) * z.abs() + abs(q) * eps.abs(), c_in, (p, q)


def params(
    sde: ForwardSDE,
    names: Sequence[str] | None = None,
    mean: float = 0.25,
    scale: float = 0.5,
    event: Sequence[int] = (2,),
    dtype: torch.dtype = torch.float64,
) -> None:
    """Law 6a: every parameterisation of a network gives the same point, for tensors of times and nodes of a run.

    Args:
        sde: Forward SDE.
        names: Parameterisations. Default: all that the SDE takes.
        mean: Mean of the data.
        scale: Standard deviation of the data.
        event: Shape of one datum.
        dtype: Of the state.

    Raises:
        LawViolation: If one breaks it.

    Example:
        >>> import sde
        >>> sde.checks.params(sde.Flow())
    """
    names = names or [p for p in PARAMS if isinstance(sde, ScalarSDE) or p not in SCALAR_ONLY]
    nodes = Table(torch.tensor(times_of(sde, FEW), dtype=torch.float64).flip(0)).nodes
    for param in names:
        for node in nodes:
            _param(sde, param, node, mean, scale, event, dtype)


def _param(
    sde: ForwardSDE, param: str, node: float, mean: float, s: float, event: Sequence[int], dtype: torch.dtype
) -> None:
    t, generator = float(node), torch.Generator().manual_seed(9)
    x0 = mean + s * randn((3, *event), generator, dtype=dtype)
    truth = sde.at(x0, t, randn(sde.state(x0).shape, generator, dtype=dtype))
    rates = [float(c) for c in sde.rates_of_statistic(torch.tensor(t, dtype=torch.float64))]
    alpha, sigma = rates[:2]
    y, z = sde.statistic(truth.x, t)[0], x0 - mean
    noise = (y - alpha * x0) / sigma if not isinstance(sde, ScalarSDE) else truth.eps
    answer, terms, c_in, (p, q) = _literature(param, z, noise, rates, s)
    det = abs(alpha * q - sigma * p)
    blind = det == 0  # the state says nothing of x0, and this network nothing either
    u, size_u = y - alpha * mean, y.abs() + alpha * abs(mean)
    size0 = (abs(q) * size_u + sigma * terms) / (det or 1.0) + abs(mean)
    net = _Answer(answer)
    model = ScoreModel(net, sde, param, mean, s)
    each = torch.full((3,), t, dtype=torch.float64)
    for spelled, words in ((t, ""), (each, " for t of shape (B,)"), (node, " for t as a node")):
        point = model(truth.x, spelled)
        if net.shown.dtype != dtype:
            raise violated("6a", sde, f"input of a {param} network{words} has dtype {net.shown.dtype}, not {dtype}", t)
        agree("6a", sde, f"input of a {param} network{words}", net.shown, c_in * u, c_in * size_u, t=t)
        for name, size in _sizes(sde, t, truth, size_u, terms, size0, rates, (p, q)).items():
            got, expected = getattr(point, name), getattr(truth, name)
            if got.dtype != dtype:
                raise violated("6a", sde, f"{name} of a {param} network{words} has dtype {got.dtype}, not {dtype}", t)
            if not (blind and name in ("x0", "velocity")):
                agree("6a", sde, f"{name} of a {param} network{words}", got, expected, size, t=t)


def _sizes(
    sde: ForwardSDE,
    t: float,
    truth: Point,
    size_u: Tensor,
    terms: Tensor,
    size0: Tensor,
    rates: Sequence[float],
    pq: tuple[float, float],
) -> dict[str, Tensor]:
    """Sums of absolute terms of each property, given that of x0."""
    alpha, sigma, dalpha, dsigma = rates
    if isinstance(sde, ScalarSDE):
        det = abs(alpha * pq[1] - sigma * pq[0])
        eps = (alpha * terms + abs(pq[0]) * size_u) / det if det else size_u / sigma
        return {"x0": size0, "eps": eps, "velocity": abs(dalpha) * size0 + abs(dsigma) * eps, "score": eps / sigma}
    at = Probe(sde, t, truth.x0.shape[1:])
    inner = truth.x.double().flatten(1).abs() + size0.double().flatten(1) @ at.A.abs().T
    like = truth.x.shape
    eps, x = inner @ at.W.abs().T, truth.x.double().flatten(1).abs()
    score = eps @ at.S.abs().T
    flow = x @ at.D.abs().T + score @ at.C.abs().T
    return {"x0": size0, "eps": eps.reshape(like), "velocity": flow.reshape(like), "score": score.reshape(like)}


def _states(model: Model, event: Sequence[int], t: float, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(10)
    x0 = model.data_scale() * randn((3, *event), generator, dtype=dtype)
    return model.sde.perturb(x0, t, generator).x


def guidance(model: Model, event: Sequence[int] | None = None, rtol: float = 1e-9) -> None:
    """Law 8: `CFG(scale=1)` is the conditional model, `CFG(scale=0)` the other, `tilted(0)` nothing.

    A tilt by the slope g of a function of the statistic adds g to the score; where alpha = 0 it moves nothing.

    Args:
        model: Score model, not coupled.
        event: Shape of one datum. Default: the target's.
        rtol: Relative tolerance.

    Raises:
        LawViolation: If the model breaks it.

    Example:
        >>> import sde
        >>> sde.checks.guidance(sde.ExactScore(sde.Gaussian([0.0, 1.0], 0.5), sde.Flow()))
    """
    event = tuple(model.target.event if isinstance(model, ExactScore) else event or (2,))
    other = ExactScore(Gaussian(torch.full(event, 0.2), [0.3] * max(1, torch.Size(event).numel())), model.sde)
    for t in times_of(model.sde, FEW):
        x = _states(model, event, t, model.placement()[1])
        point = model(x, t)
        for scale, expected in ((1.0, point), (0.0, other(x, t))):
            got = CFG(model, other, scale)(x, t)
            _same_point(model, f"CFG(scale={scale:g})", got, expected, t, rtol)
        _same_point(model, "tilted(0)", point.tilted(torch.zeros_like(x)), point, t, rtol)
        _tilt(model, point, t, rtol)


def _same_point(model: Model, words: str, got: Point, expected: Point, t: float, rtol: float) -> None:
    size = _score_size(model.sde, t, expected)
    agree("8", model, f"x0 of {words}", got.x0, expected.x0, expected.x0.abs().amax() + 1, t=t, rtol=rtol)
    agree("8", model, f"score of {words}", got.score, expected.score, size, t=t, rtol=rtol)


def _tilt(model: Model, point: Point, t: float, rtol: float) -> None:
    """Tilted by g = U' h, the slope of a function of the statistic, the score moves by g; where A = 0, nothing."""
    at = Probe(model.sde, t, point.x0.shape[1:])
    h = randn(point.x0.shape, torch.Generator().manual_seed(11), dtype=torch.float64).flatten(1)
    dtype = point.x.dtype
    blind = not bool(at.A.any())
    g = (torch.ones_like(point.x).flatten(1) if blind else (h @ at.U).to(dtype)).reshape(point.x.shape)
    tilted = point.tilted(g)
    expected = point.score if blind else point.score + g
    shift = (g.double().flatten(1).abs() @ at.L.abs() @ at.L.abs().T @ at.U.abs().T @ at.A.abs().T).reshape(g.shape)
    size = _score_size(model.sde, t, point) + (shift.flatten(1) @ at.W.abs().T @ at.S.abs().T).reshape(g.shape)
    agree("8", model, "score of tilted(g)", tilted.score, expected, size, t=t, rtol=rtol)
    if blind:
        agree("8", model, "x0 of tilted(g) where alpha = 0", tilted.x0, point.x0, t=t, rtol=rtol)


def coupled(model: Model, event: Sequence[int] = (2,)) -> None:
    """Law 11: a model trained with a coupling gives a velocity, and refuses by name what needs a score.

    Args:
        model: Score model marked `coupled`.
        event: Shape of one datum.

    Raises:
        LawViolation: If the mark is lost, or a score is given out.

    Example:
        >>> import sde
        >>> sde.checks.coupled(sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.Flow(), "velocity", coupled=True))
    """
    from sde.solvers import AnnealedLangevin, Euler, Langevin, PredictorCorrector, ReverseSDE

    if not model.coupled:
        raise violated(
            "11", model, "the model is not marked coupled", hint="train with a coupling, or set coupled=True"
        )
    t = (model.sde.t_min + model.sde.t_max) / 2
    x = _states(model, event, t, model.placement()[1])
    flow = ReverseSDE(model)
    if not bool(torch.isfinite(flow.drift(x, t)).all()):
        raise violated("11", model, "the velocity is not finite", t)
    wrapped = {"CFG": CFG(model, model, 2.0), "given": model.given()}
    for name, wrapper in wrapped.items():
        if not wrapper.coupled:
            raise violated("11", model, f"{name} loses the mark")
    wants_score = {
        "point.score": lambda: model(x, t).score,
        "point.tilted": lambda: model(x, t).tilted(torch.zeros_like(x)),
        "score of lerp": lambda: model(x, t).lerp(model(x, t), 0.5).score,
        "ReverseSDE(eta=1)": lambda: ReverseSDE(model, eta=1.0),
        "Langevin": lambda: Langevin().check(flow),
        "AnnealedLangevin": lambda: AnnealedLangevin().check(flow),
        "PredictorCorrector": lambda: PredictorCorrector(Euler()).check(flow),
    }
    for name, ask in wants_score.items():
        try:
            ask()
        except ValueError as error:
            if "coupling" not in str(error):
                raise violated("11", model, f"{name} is refused without a word of the coupling: {error}") from error
        else:
            raise violated("11", model, f"{name} is not refused")
