"""Operators: adjoint, functions of singular values, pseudo-inverse and solves, against a dense SVD and torch."""

import math
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from sde import inverse
from sde.inverse import LinearOperator, Operator

FACE = (3, 6, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


LINEAR: dict[str, LinearOperator] = {
    "mask": inverse.Mask(draws(2, 5) > 0),
    "box": inverse.Mask.box(FACE, 1, 2, 3, 4),
    "half": inverse.Mask.halved(FACE, "left"),
    "random mask": inverse.Mask.random(FACE, 0.4, generator()),
    "identity": inverse.Identity(FACE),
    "pool": inverse.AveragePool(FACE, 2),
    "pool of a plane": inverse.AveragePool((6, 9), 3),
    "grey": inverse.Grey(FACE),
    "grey by other weights": inverse.Grey((2, 3, 3), (1.0, -2.0)),
    "bicubic": inverse.Bicubic(FACE, 2),
    "separable, taller": inverse.Separable((2, 3, 4), draws(5, 3), draws(2, 4, seed=1)),
    "separable, of low rank": inverse.Separable((3, 4), torch.ones(4, 3), draws(4, 4)),
    "blur": inverse.Blur(FACE, draws(3, 5)),
    "Gaussian blur": inverse.Blur.gaussian(FACE, 0.8),
    "Gaussian blur of odd sides": inverse.Blur.gaussian((7, 5), 0.7),
    "motion blur": inverse.Blur.motion((1, 9, 8), 5, 30),
    "matrix": inverse.Matrix(draws(5, 12), (3, 2, 2), (1, 5)),
    "taller matrix": inverse.Matrix(draws(9, 4)),
    "matrix of low rank": inverse.Matrix(draws(6, 2) @ draws(2, 8)),
    "random projections": inverse.Matrix.random((1, 4, 4), 5, generator()),
    "composed": cast(
        LinearOperator, inverse.compose(inverse.Mask.halved((1, 6, 6)), inverse.Blur.gaussian((1, 6, 6), 0.6))
    ),
}

linear = pytest.mark.parametrize("name", LINEAR)


def dense(name: str) -> tuple[LinearOperator, Tensor, Tensor, Tensor, Tensor]:
    """An operator, its matrix from its forward, and U (m, m), s (min), V (d, d)."""
    operator = LINEAR[name]
    matrix = operator.matrix()
    u, s, vt = torch.linalg.svd(matrix)
    return operator, matrix, u, s, vt.mT


def padded(s: Tensor, n: int) -> Tensor:
    # Rounding leaves a singular value of 0 at 1e-16, where f may be steep.
    return torch.cat([torch.where(s > 1e-10, s, 0.0), s.new_zeros(n - len(s))])


FUNCTIONS = {
    "damped": lambda s: 1 / (s**2 + 0.3),
    "of what is not seen": lambda s: (s < 1e-5).to(s),
    "bump": lambda s: torch.exp(-((s - 0.5) ** 2)),
}


@linear
def test_adjoint_by_the_dot_product(name: str) -> None:
    operator = LINEAR[name]
    x, y = draws(3, *operator.event), draws(3, *operator.measured, seed=1)
    left, right = (operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@linear
def test_forward_is_its_matrix_and_keeps_dtype_and_batch(name: str) -> None:
    operator, matrix, *_ = dense(name)
    x = draws(3, *operator.event)
    y = operator(x)
    assert y.shape == (3, *operator.measured)
    assert torch.allclose(y.flatten(1), x.flatten(1) @ matrix.T, atol=1e-12)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        z = operator(x.to(dtype))
        assert z.dtype is operator.adjoint(z).dtype is operator.pinv(z).dtype is dtype
        assert torch.allclose(z.double(), y, atol=tolerance * float(y.abs().max()))


@linear
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filters_are_functions_of_the_singular_values(name: str, function: str, dtype: torch.dtype) -> None:
    operator, matrix, u, s, v = dense(name)
    f = FUNCTIONS[function]
    m, d = matrix.shape
    x, y = draws(3, *operator.event), draws(3, *operator.measured, seed=1)
    atol = 1e-4 if dtype is torch.float32 else 1e-10
    seen, made = v @ torch.diag(f(padded(s, d))) @ v.mT, u @ torch.diag(f(padded(s, m))) @ u.mT
    assert torch.allclose(operator.filter(x.to(dtype), f).double().flatten(1), x.flatten(1) @ seen, atol=atol)
    assert torch.allclose(operator.filter_measured(y.to(dtype), f).double().flatten(1), y.flatten(1) @ made, atol=atol)


@linear
def test_norm_is_the_largest_singular_value(name: str) -> None:
    operator, _, _, s, _ = dense(name)
    assert operator.norm == pytest.approx(float(s.max()), rel=1e-10)


@linear
def test_pseudo_inverse(name: str) -> None:
    operator, matrix, *_ = dense(name)
    y = draws(3, *operator.measured)
    expected = y.flatten(1) @ torch.linalg.pinv(matrix, rtol=1e-5).T
    assert torch.allclose(operator.pinv(y).flatten(1), expected, rtol=1e-7, atol=1e-7)


@linear
def test_projection_makes_y_and_is_the_nearest_that_does(name: str) -> None:
    operator, matrix, *_ = dense(name)
    y, x = operator(draws(3, *operator.event)), draws(3, *operator.event, seed=1)
    nearest = operator.project(x, y)
    assert torch.allclose(operator(nearest), y, atol=1e-9)
    kernel = torch.eye(matrix.shape[1], dtype=torch.float64) - torch.linalg.pinv(matrix, rtol=1e-5) @ matrix
    assert torch.allclose((nearest - x).flatten(1) @ kernel, torch.zeros(()).double(), atol=1e-7)


@linear
def test_solve(name: str) -> None:
    operator, matrix, *_ = dense(name)
    y = draws(3, *operator.measured)
    for variance, noise in ((0.7, 0.3), (1.0, 1e-2)):
        whole = variance * matrix @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64)
        expected = torch.linalg.solve(whole, y.flatten(1).T).T
        assert torch.allclose(operator.solve(y, variance, noise).flatten(1), expected, rtol=1e-8, atol=1e-8)
    expected = y.flatten(1) @ torch.linalg.pinv(0.7 * matrix @ matrix.T, rtol=1e-10)
    assert torch.allclose(operator.solve(y, 0.7, 0.0).flatten(1), expected, rtol=1e-5, atol=1e-5)


@linear
def test_bad_shapes_are_refused_with_the_remedy(name: str) -> None:
    operator = LINEAR[name]
    x, y = draws(2, *operator.event, 2), draws(2, *operator.measured, 2)
    for act in (operator, lambda v: operator.filter(v, torch.ones_like)):
        with pytest.raises(ValueError, match="make the operator for event="):
            act(x)
    for act in (operator.adjoint, operator.pinv, lambda v: operator.filter_measured(v, torch.ones_like)):
        with pytest.raises(ValueError, match=r"pass y = operator\(x0\) with its batch axis"):
            act(y)


@linear
def test_numbers_made_in_inference_serve_gradients_too(name: str) -> None:
    operator = LINEAR[name]
    with torch.inference_mode():
        operator(draws(1, *operator.event, dtype=torch.float32))
    x = draws(1, *operator.event, dtype=torch.float32).requires_grad_()
    operator.filter(x, FUNCTIONS["damped"]).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


# Each operator's own definition


def test_masks_hide_what_they_say() -> None:
    box = inverse.Mask.box((2, 5, 6), top=1, left=2, height=3, width=4).seen
    assert not bool(box[:, 1:4, 2:6].any())
    assert int((~box).sum()) == 2 * 3 * 4
    for hidden, cut in {"top": np.s_[:2], "bottom": np.s_[3:], "left": np.s_[:, :3], "right": np.s_[:, 3:]}.items():
        seen = inverse.Mask.halved((5, 6), hidden).seen  # type: ignore[arg-type]
        assert not bool(seen[cut].any())
        assert int((~seen).sum()) == seen[cut].numel()
    many = inverse.Mask.random((3, 100, 100), 0.2, generator()).seen
    assert float(many.double().mean()) == pytest.approx(0.2, abs=5 * 0.4 / 100)
    assert torch.equal(many[0], many[1])  # a pixel is seen in all its channels, or hidden
    assert torch.equal(many, inverse.Mask.random((3, 100, 100), 0.2, generator()).seen)
    assert inverse.Mask.random((7,), 1.0).seen.all()


def test_pool_is_torch_s() -> None:
    x = draws(2, *FACE)
    assert torch.allclose(inverse.AveragePool(FACE, 2)(x), torch.nn.functional.avg_pool2d(x, 2))


@pytest.mark.parametrize(("side", "factor"), [(28, 4), (32, 2), (12, 3), (8, 8), (6, 1)])
def test_bicubic_is_torch_s_with_antialias(side: int, factor: int) -> None:
    event = (3, side, side // 2 * 2)
    x = draws(2, *event)
    small = (side // factor, event[2] // factor)
    expected = torch.nn.functional.interpolate(x, small, mode="bicubic", antialias=True, align_corners=False)
    assert torch.allclose(inverse.Bicubic(event, factor)(x), expected, atol=1e-12)


def test_grey_is_pil_s_luma() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = (torch.rand(4, 5, 3, generator=generator()) * 255).byte()
    theirs = torch.from_numpy(np.asarray(image.fromarray(pixels.numpy()).convert("L")).copy())
    ours = inverse.Grey((3, 4, 5))(pixels.permute(2, 0, 1)[None].double())[0, 0]
    assert (ours - theirs).abs().max() <= 1  # theirs is rounded to a grey level


def test_blur_is_a_circular_correlation_free_of_its_middle() -> None:
    kernel, x = draws(3, 5), draws(2, 3, 6, 8)
    around = torch.nn.functional.pad(x, (2, 2, 1, 1), mode="circular")
    weight = kernel.flip(0, 1)[None, None].expand(3, 1, 3, 5)  # torch correlates, a convolution flips
    expected = torch.nn.functional.conv2d(around, weight, groups=3)
    assert torch.allclose(inverse.Blur((3, 6, 8), kernel)(x), expected, atol=1e-12)


def spread(blur: inverse.Blur) -> tuple[Tensor, Tensor, Tensor]:
    """What a blur makes of a dot: its mass, its centre and its covariance in pixels."""
    rows, columns = blur.event[-2:]
    dot = torch.zeros(1, *blur.event, dtype=torch.float64)
    dot[..., rows // 2, columns // 2] = 1
    made = blur(dot)[0, 0]
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).double()
    centre = (made[..., None] * places).sum((0, 1)) / made.sum()
    r = (places - centre).flatten(0, 1)
    return made.sum(), centre - torch.tensor([rows // 2, columns // 2]), (made.flatten()[:, None] * r).T @ r


def test_a_gaussian_blur_has_its_width() -> None:
    mass, centre, cov = spread(inverse.Blur.gaussian((1, 41, 37), 2.0))
    assert float(mass) == pytest.approx(1, abs=1e-12)
    assert centre.abs().max() < 1e-10
    assert torch.allclose(cov, 4 * torch.eye(2).double(), atol=0.02)  # the kernel ends at four widths


@pytest.mark.parametrize("angle", [0, 30, 90, 135])
def test_a_motion_blur_has_its_length_and_angle(angle: float) -> None:
    mass, centre, cov = spread(inverse.Blur.motion((1, 41, 41), 15, angle))
    assert float(mass) == pytest.approx(1, abs=1e-12)
    assert centre.abs().max() < 1e-10
    along = torch.tensor([-math.sin(math.radians(angle)), math.cos(math.radians(angle))]).double()
    assert float(along @ cov @ along) == pytest.approx(15**2 / 12, rel=0.03)  # a uniform line's variance
    across = torch.stack([along[1], -along[0]])
    assert float(across @ cov @ across) < 0.15  # a pixel's width, at most


def test_random_projections_keep_lengths_in_the_mean() -> None:
    x = draws(1, 30)
    lengths = [float(inverse.Matrix.random((30,), 10, generator(i))(x).square().sum()) for i in range(400)]
    assert np.mean(lengths) == pytest.approx(float(x.square().sum()), rel=5 * math.sqrt(2 / 10 / 400))


def test_composition() -> None:
    event = (1, 8, 8)
    blur, pool = inverse.Blur.gaussian(event, 1.0), inverse.AveragePool(event, 2)
    mask = inverse.Mask.halved((1, 4, 4))
    x = draws(3, *event)
    all_three = inverse.compose(mask, pool, blur)
    assert isinstance(all_three, inverse.Matrix)
    assert all_three.measured == (1, 4, 4)
    assert torch.allclose(all_three(x), mask(pool(blur(x))), atol=1e-12)
    clipped = inverse.compose(mask, pool, inverse.Function(torch.tanh, event))
    assert not isinstance(clipped, LinearOperator)
    assert torch.equal(clipped(x), mask(pool(torch.tanh(x))))
    with pytest.raises(ValueError, match=r"AveragePool takes samples of shape \(1, 8, 8\), and Mask before it makes"):
        inverse.compose(pool, mask)
    large = inverse.Identity((3, 64, 64))
    with pytest.raises(ValueError, match="12288 columns, more than 4096: wrap it in Function"):
        inverse.compose(large, large)


def test_a_function_keeps_gradients_and_its_batch() -> None:
    square = inverse.Function(lambda x: x.flatten(1) ** 2, (2, 2))
    assert square.measured == (4,)
    x = draws(3, 2, 2).requires_grad_()
    square(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 * x.detach())
    with pytest.raises(ValueError, match="an observation to a sample"):
        inverse.Function(lambda x: x.sum(), (2, 2))(x)


@pytest.mark.gpu
@linear
def test_on_a_gpu_the_same(name: str) -> None:
    operator = LINEAR[name]
    x = draws(2, *operator.event, dtype=torch.float32)
    f = FUNCTIONS["damped"]
    for act in (operator, lambda v: operator.adjoint(operator(v)), lambda v: operator.filter(v, f)):
        assert torch.allclose(act(x.cuda()).cpu(), act(x), atol=1e-4)


# Bad input


BAD = {
    "seen must be of bool": (TypeError, lambda: inverse.Mask(torch.ones(3))),
    "box of 4 x 4 at row 3, column 0 must lie": (ValueError, lambda: inverse.Mask.box((1, 6, 6), 3, 0, 4, 4)),
    "box of 0 x 4": (ValueError, lambda: inverse.Mask.box((1, 6, 6), 0, 0, 0, 4)),
    "hidden must be one of top, bottom": (ValueError, lambda: inverse.Mask.halved((6, 6), "middle")),  # type: ignore
    "share must be between 0 and 1, got 1.5": (ValueError, lambda: inverse.Mask.random((6, 6), 1.5)),
    "event must be the shape of one sample": (ValueError, lambda: inverse.Identity(())),
    r"factor must divide height 6 and width 8, got 3: use one of \[2\]": (
        ValueError, lambda: inverse.AveragePool(FACE, 3)
    ),
    "factor must divide height 6 and width 8, got 0": (ValueError, lambda: inverse.Bicubic(FACE, 0)),
    "AveragePool needs samples that end in height and width": (ValueError, lambda: inverse.AveragePool((16,), 2)),
    "a picture of one channel is grey already": (ValueError, lambda: inverse.Grey((1, 6, 6))),
    "weights must be finite and not all 0": (ValueError, lambda: inverse.Grey(FACE, (0.0, 0.0, 0.0))),
    "rows must be a finite matrix of 6 columns": (
        ValueError, lambda: inverse.Separable(FACE, torch.ones(3, 5), torch.ones(4, 8))
    ),
    "columns must be a finite matrix of 8 columns": (
        ValueError, lambda: inverse.Separable(FACE, torch.ones(3, 6), torch.full((4, 8), math.nan))
    ),
    "kernel must be finite, with odd sides": (ValueError, lambda: inverse.Blur(FACE, torch.ones(2, 3))),
    r"got shape \(9, 3\): choose a smaller width": (ValueError, lambda: inverse.Blur(FACE, torch.ones(9, 3))),
    "width must be positive, got 0": (ValueError, lambda: inverse.Blur.gaussian(FACE, 0)),
    "length must be at least 1": (ValueError, lambda: inverse.Blur.motion(FACE, 0.5)),
    r"matrix must be finite, of shape \(m, d\), got shape \(3,\)": (ValueError, lambda: inverse.Matrix(torch.ones(3))),
    r"matrix is 2 x 3, event=\(2, 2\) has 4 numbers": (ValueError, lambda: inverse.Matrix(torch.ones(2, 3), (2, 2))),
    "measurements must be at least 1, got 0": (ValueError, lambda: inverse.Matrix.random(FACE, 0)),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message: str) -> None:
    error, make = BAD[message]
    with pytest.raises(error, match=message):
        make()


def test_every_operator_stands_in_these_tests() -> None:
    shipped = {c for c in vars(inverse).values() if isinstance(c, type) and issubclass(c, Operator)}
    abstract = {Operator, LinearOperator, inverse.Tight}
    tested = {type(o) for o in LINEAR.values()} | {inverse.Function}
    assert shipped - abstract == tested
