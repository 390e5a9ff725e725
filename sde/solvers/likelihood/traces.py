r"""The divergence of a vector field: the trace of its Jacobian J, exact or estimated, by backward passes.

One backward pass gives J' z for one z. So the exact trace of d coordinates takes d of them, and an estimate as many as
one likes. With probes z of independent coordinates, mean 0 and variance 1,

    Hutchinson      tr J = E z' J z,                             variance sum_{i<j} (J_ij + J_ji)^2 for signs,
                                                                 and sum_i 2 J_ii^2 more for normal probes;
    Hutch++         Q = an orthonormal basis of J' S for m probes S, P = I - Q Q',
                    tr J = tr Q' J Q + E z' P J P z,

which is exact where J has rank m or less, and needs 2 m backward passes and one more for each z. Given S both are
unbiased, and so is the integral along a path on which S and z are held fixed, where the ODE stays smooth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.random import Generator, rand, randn

Field = Callable[[Tensor], Tensor]
r"""From (B, \*D) to (B, \*D), each sample by itself."""

Drawn = Callable[[Field, Tensor], tuple[Tensor, Tensor]]
r"""From a field and x to field(x), (B, \*D), and K values of its divergence, (B, K)."""

CHUNK = 2**22
"""Numbers that the gradients of one batch of backward passes may hold."""
ONE_BY_ONE = 8
"""Coordinates up to which backward passes go one after the other, which costs less than to batch them."""


class Trace(ABC):
    """A way to the divergence; what it draws is drawn once for a whole path."""

    @property
    def columns(self) -> int:
        """K, how many values it has."""
        return 1

    @abstractmethod
    def draw(self, x: Tensor, generator: Generator = None) -> Drawn:
        r"""The way for states like x (B, \*D), its probes drawn."""


@dataclass(frozen=True)
class ExactTrace(Trace):
    """The exact divergence: a backward pass for each coordinate.

    Args:
        chunk: Backward passes at a time. Default: one by one for few coordinates, else as many as keep their gradients
            within 4 million numbers.

    Example:
        >>> exact = ExactTrace().draw(torch.zeros(1, 2))
        >>> exact(lambda x: x**2, torch.tensor([[1.0, 2.0]]))
        (tensor([[1., 4.]]), tensor([[6.]]))
    """

    chunk: int | None = None

    def draw(self, x: Tensor, generator: Generator = None) -> Drawn:  # noqa: D102
        def exact(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
            v, div = divergence(field, x, self.chunk)
            return v, div[:, None]

        return exact


@dataclass(frozen=True)
class Hutchinson(Trace):
    """Hutchinson's estimate: a backward pass for each probe.

    Args:
        probes: K, each an estimate by itself; two or more tell their own error.
        normal: Normal probes in place of random signs, which have less variance.

    References:
        Hutchinson (1990), Commun. Stat. Simul. Comput. 19, 433; Grathwohl et al. (2019), 1810.01367.

    Example:
        >>> of = Hutchinson(3).draw(torch.zeros(1, 2), torch.Generator().manual_seed(0))
        >>> of(lambda x: x**2, torch.tensor([[1.0, 2.0]]))[1]  # without off-diagonal terms signs are exact
        tensor([[6., 6., 6.]])
    """

    probes: int = 1
    normal: bool = False

    def __post_init__(self) -> None:
        _at_least_one("probes", self.probes)

    @property
    def columns(self) -> int:  # noqa: D102
        return self.probes

    def draw(self, x: Tensor, generator: Generator = None) -> Drawn:  # noqa: D102
        z = (normals if self.normal else signs)(x.shape, self.probes, generator, x)
        return lambda field, x: hutchinson(field, x, z)


@dataclass(frozen=True)
class HutchPP(Trace):
    """Hutch++: the trace on a subspace that the Jacobian favours exactly, and Hutchinson's estimate of the rest.

    Args:
        probes: K, of the rest, each an estimate by itself.
        sketch: m, dimensions of the subspace, two backward passes each; at most as many as there are coordinates.

    References:
        Meyer, Musco, Musco & Woodruff (2021), 2010.09649, algorithm 1.

    Example:
        >>> of = HutchPP(probes=2, sketch=1).draw(torch.zeros(1, 3), torch.Generator().manual_seed(0))
        >>> of(lambda x: x.sum(1, keepdim=True).expand_as(x), torch.ones(1, 3))[1]  # of rank 1
        tensor([[3.0000, 3.0000]])
    """

    probes: int = 2
    sketch: int = 4

    def __post_init__(self) -> None:
        _at_least_one("probes", self.probes)
        _at_least_one("sketch", self.sketch)

    @property
    def columns(self) -> int:  # noqa: D102
        return self.probes

    def draw(self, x: Tensor, generator: Generator = None) -> Drawn:  # noqa: D102
        sketch = min(self.sketch, x[0].numel())
        z = signs(x.shape, self.probes + sketch, generator, x)
        return lambda field, x: hutchpp(field, x, z[sketch:], z[:sketch])


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def divergence(field: Field, x: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    r"""A vector field at x and its exact divergence, d backward passes for d coordinates.

    Args:
        field: From (B, \*D) to (B, \*D), each sample by itself.
        x: States, (B, \*D).
        chunk: Backward passes at a time. Default: as `ExactTrace`.

    Returns:
        field(x), (B, \*D), and its divergence, (B,); detached unless x requires a gradient and gradients are on.

    Example:
        >>> v, div = divergence(lambda x: x**2, torch.tensor([[1.0, 2.0]]))
        >>> v, div
        (tensor([[1., 4.]]), tensor([6.]))
    """
    batch, d = x.shape[0], x[0].numel()
    chunk = chunk or (1 if d <= ONE_BY_ONE else max(1, CHUNK // x.numel()))
    total = x.new_zeros(batch)
    with _Backward(field, x) as back:
        for first in range(0, d, chunk):
            last = min(first + chunk, d)
            if chunk == 1:
                pick = torch.zeros_like(back.v).flatten(1)
                pick[:, first] = 1
                total = total + back(pick.reshape(x.shape), last=last == d).flatten(1)[:, first]
                continue
            rows = torch.arange(first, last, device=x.device)
            pick = torch.nn.functional.one_hot(rows, d).to(x).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            g = back(pick, last=last == d, batched=True)
            total = total + (g * pick).flatten(2).sum((0, 2))
    return back.value, total


def hutchinson(field: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    r"""A vector field at x and estimates of its divergence, one evaluation and K backward passes.

    Args:
        field: From (B, \*D) to (B, \*D), each sample by itself.
        x: States, (B, \*D).
        probes: z, (K, B, \*D), of independent coordinates with mean 0 and variance 1.

    Returns:
        field(x), (B, \*D), and z' J z, (B, K); detached unless x requires a gradient and gradients are on.

    Example:
        >>> signs = torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]]])
        >>> hutchinson(lambda x: x**2, torch.tensor([[1.0, 2.0]]), signs)[1]
        tensor([[6., 6.]])
    """
    with _Backward(field, x) as back:
        found = [_dot(back(z.to(x), last=k == len(probes) - 1), z.to(x)) for k, z in enumerate(probes)]
    return back.value, torch.stack(found, 1)


def hutchpp(field: Field, x: Tensor, probes: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
    r"""A vector field at x and Hutch++ estimates of its divergence, one evaluation and 2 m + K backward passes.

    Args:
        field: From (B, \*D) to (B, \*D), each sample by itself.
        x: States, (B, \*D).
        probes: z, (K, B, \*D), of independent coordinates with mean 0 and variance 1.
        sketch: S, (m, B, \*D), independent of them.

    Returns:
        field(x), (B, \*D), and the estimates, (B, K); detached unless x requires a gradient and gradients are on.

    Example:
        >>> z = torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]], [[1.0, -1.0]]])
        >>> hutchpp(lambda x: x**2, torch.tensor([[1.0, 2.0]]), z[:1], z[1:])[1]  # two of two dimensions
        tensor([[6.0000]])
    """
    with _Backward(field, x) as back:
        image = torch.stack([back(s.to(x)) for s in sketch], -1).flatten(1, -2)  # J' S, (B, d, m)
        q = torch.linalg.qr(image)[0]
        images = torch.stack([back(c.reshape(x.shape)) for c in q.unbind(-1)], -1).flatten(1, -2)
        inside, found = (q * images).sum((1, 2)), []
        for k, z in enumerate(probes):
            flat = z.to(x).flatten(1)
            rest = flat - (q @ (q.mT @ flat[..., None]))[..., 0]
            found.append(inside + _dot(back(rest.reshape(x.shape), last=k == len(probes) - 1), rest))
    return back.value, torch.stack(found, 1)


def signs(shape: Sequence[int], k: int, generator: Generator, like: Tensor) -> Tensor:
    r"""K probes of random signs for each sample of a shape (B, \*D): (K, B, \*D), placed as `like`.

    Example:
        >>> signs((4, 2), 3, torch.Generator().manual_seed(0), torch.zeros(1)).unique()
        tensor([-1.,  1.])
    """
    u = rand((shape[0], k, *shape[1:]), generator, dtype=torch.float32, device=like.device)
    return (2 * (u < 0.5) - 1).to(like.dtype).transpose(0, 1).contiguous()


def normals(shape: Sequence[int], k: int, generator: Generator, like: Tensor) -> Tensor:
    r"""K normal probes for each sample of a shape (B, \*D): (K, B, \*D), placed as `like`.

    Example:
        >>> normals((4, 2), 3, torch.Generator().manual_seed(0), torch.zeros(1)).shape
        torch.Size([3, 4, 2])
    """
    z = randn((shape[0], k, *shape[1:]), generator, dtype=like.dtype, device=like.device)
    return z.transpose(0, 1).contiguous()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.flatten(1) * b.flatten(1)).sum(1)


class _Backward:
    """A field at x, and J' z for any z while it is open."""

    def __init__(self, field: Field, x: Tensor) -> None:
        self.field, self.keep = field, torch.is_grad_enabled() and x.requires_grad
        self.x = x

    def __enter__(self) -> _Backward:
        self.on = torch.enable_grad()
        self.on.__enter__()
        self.u = self.x if self.keep else self.x.detach().requires_grad_()
        self.v = self.field(self.u) + 0 * self.u  # a field that ignores x has a gradient as well: 0
        self.value = self.v if self.keep else self.v.detach()
        return self

    def __exit__(self, *_: object) -> None:
        self.on.__exit__(None, None, None)

    def __call__(self, z: Tensor, last: bool = False, batched: bool = False) -> Tensor:
        """J' z; the last one lets go of the graph."""
        (g,) = torch.autograd.grad(
            self.v, self.u, z, retain_graph=self.keep or not last, create_graph=self.keep, is_grads_batched=batched
        )
        return g
