r"""Law 10: what draws random numbers draws them from its generator alone.

Same seed, same bits; one generator for each sample makes a sample independent of the batch that it was drawn in;
torch's global generator stays where it was; float32 and float64 see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde.checks.agree import agree, violated
from sde.forward import ForwardSDE
from sde.random import Generator

Draw = Callable[[int, Generator], Tensor]


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def reproducible(draw: Draw, subject: object = "draw", rtol: float | None = None) -> None:
    r"""Law 10 for a function of a batch size and a generator.

    Args:
        draw: Called as draw(n, generator) with one generator or a list of n; returns (n, \*D).
        subject: What is named in the message.
        rtol: Tolerance between a sample drawn in a batch and alone. Default: 200 eps.

    Raises:
        LawViolation: If the same seed gives other bits, another seed the same ones, a neighbour matters, or torch's
            global generator moved.

    Example:
        >>> import sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.checks.reproducible(lambda n, g: sde.sample(model, (n, 1), steps=4, generator=g))
    """
    before = torch.get_rng_state()
    first, again, other = (draw(8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    if not torch.equal(first, again):
        worst = float((first - again).abs().max())
        raise violated("10", subject, f"the same seed gives other bits: a difference of {worst:.3g}")
    if torch.equal(first, other):
        raise violated("10", subject, "another seed gives the same bits", hint="pass the generator on to every draw")
    batch = draw(4, _generators(range(4)))
    if not torch.equal(batch, draw(4, _generators(range(4)))):
        raise violated("10", subject, "the same generators, one for each sample, give other bits")
    for i in range(4):
        alone = draw(1, _generators([i]))
        size = float(batch.abs().max())
        what = f"sample {i}, drawn in a batch with generators of its own, against alone,"
        agree(
            "10", subject, what, batch[i : i + 1], alone, size, rtol=rtol, hint="a sample must not see its neighbours"
        )
    if not torch.equal(before, torch.get_rng_state()):
        raise violated("10", subject, "torch's global generator moved", hint="pass the generator on to every draw")


def randomness(sde: ForwardSDE, event: Sequence[int] = (2,)) -> None:
    """Law 10 for `perturb` and `prior`, and the same numbers in float32 and float64.

    Args:
        sde: Forward SDE.
        event: Shape of one datum.

    Raises:
        LawViolation: If the SDE breaks it.

    Example:
        >>> import sde
        >>> sde.checks.randomness(sde.VP())
    """
    middle = (sde.t_min + sde.t_max) / 2
    reproducible(lambda n, g: sde.perturb(torch.ones(n, *event), middle, g).x, sde)
    reproducible(lambda n, g: sde.prior(torch.ones(n, *event), generator=g), sde)
    single, double = (
        sde.perturb(torch.ones(3, *event, dtype=dtype), middle, torch.Generator().manual_seed(0)).eps
        for dtype in (torch.float32, torch.float64)
    )
    agree("10", sde, "eps drawn in float64, against float32,", double, single, rtol=1e-6)
