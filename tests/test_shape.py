"""The only reshape, and linear combinations that keep the state's dtype."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde.shape import as_time, expand, lincomb, placed, plus, scaled, sum_event


@pytest.mark.parametrize("t", [0.1, torch.tensor(0.1, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)])
def test_times_are_float64(t: float | torch.Tensor) -> None:
    made = as_time(t)
    assert made.dtype == torch.float64
    assert made.flatten()[0].item() == 0.1


@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (5, 3, 8, 8), (5, 3, 4, 8, 8)])
def test_expand_multiplies_each_sample_by_its_own(shape: tuple[int, ...]) -> None:
    c, x = torch.arange(5.0), torch.ones(shape)
    product = expand(c, x) * x
    assert product.shape == shape
    assert torch.equal(product.flatten(1)[:, 0], c)
    assert expand(c[:1], x).shape == (1,) * len(shape)
    assert expand(2.0, x) == 2.0
    assert expand(torch.tensor(2.0), x).ndim == 0


@pytest.mark.parametrize("c", [torch.ones(4), torch.ones(5, 1), torch.ones(5, 1, 1), torch.ones(0)])
def test_a_wrong_shape_of_t_is_refused(c: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"t has shape \(.*\) but x has shape \(5, 2\): pass t of shape \(\) or \(5,\)"
    ):
        expand(c, torch.zeros(5, 2))


coefficient = st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.5])
spelling = st.sampled_from(["number", "()", "(B,1)"])


def spelled(c: float, how: str) -> float | torch.Tensor:
    if how == "number":
        return c
    return torch.full(() if how == "()" else (3, 1), c, dtype=torch.float64)


@given(a=coefficient, b=coefficient, how_a=spelling, how_b=spelling, dtype=st.sampled_from(["float32", "float64"]))
def test_lincomb_is_a_u_plus_b_w(a: float, b: float, how_a: str, how_b: str, dtype: str) -> None:
    u, w = (torch.randn(3, 2, dtype=getattr(torch, dtype)) for _ in range(2))
    got = lincomb(spelled(a, how_a), u, spelled(b, how_b), w)
    assert got.dtype == u.dtype
    torch.testing.assert_close(got, a * u + b * w)


@given(c=coefficient, how=spelling, dtype=st.sampled_from(["bfloat16", "float32", "float64"]))
def test_scaled_is_c_x_in_the_dtype_of_x(c: float, how: str, dtype: str) -> None:
    x = torch.randn(3, 2, dtype=getattr(torch, dtype))
    got = scaled(spelled(c, how), x)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got, c * x)


@given(c=coefficient, how=spelling, dtype=st.sampled_from(["bfloat16", "float32", "float64"]))
def test_plus_is_y_plus_c_x_in_the_dtype_of_y(c: float, how: str, dtype: str) -> None:
    y, x = (torch.randn(3, 2, dtype=getattr(torch, dtype)) for _ in range(2))
    got = plus(y, spelled(c, how), x)
    assert got.dtype == y.dtype
    torch.testing.assert_close(got, y + c * x)


def test_what_rounding_leaves_costs_no_operation() -> None:
    u, w = torch.randn(3, 2), torch.randn(3, 2)
    assert scaled(1 + 1e-15, u) is u
    assert lincomb(1e-17, u, 1.0, w) is w
    assert lincomb(1 - 1e-16, u, 0.0, w) is u
    assert torch.equal(lincomb(1e-12, 1e12 * torch.ones(1), 1.0, torch.zeros(1)), torch.ones(1))  # small is not nothing


@pytest.mark.parametrize("c", [0.3, -1.0, 1e-30, 3e38, float("inf")])
def test_the_quick_product_on_the_cpu_is_the_product(c: float) -> None:
    x = torch.tensor([[1.0, -2.0, 0.0, 1e-40, float("nan"), float("-inf")]])
    torch.testing.assert_close(scaled(c, x), x * c, rtol=0, atol=0, equal_nan=True)


def test_gradients_pass_through_combinations() -> None:
    u, w = (torch.randn(3, 2, requires_grad=True) for _ in range(2))
    slopes = torch.autograd.grad(lincomb(2.0, u, -3.0, w).sum() + plus(scaled(0.5, u), 4.0, w).sum(), (u, w))
    assert [float(slope[0, 0]) for slope in slopes] == [2.5, 1.0]


def test_placed_keeps_values_and_gradients() -> None:
    c = torch.rand(3, dtype=torch.float64, requires_grad=True)
    moved = placed(c, torch.device("cpu"), torch.float32)
    assert moved.dtype == torch.float32
    moved.sum().backward()
    assert c.grad is not None
    assert c.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_placed_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    c, device = torch.rand(shape, dtype=torch.float64), torch.device("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = placed(c, device, dtype)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found.device.type, found.dtype) == ("cuda", dtype)
    assert torch.equal(found.cpu(), c.to(dtype))
    leaf = c.clone().requires_grad_()
    placed(leaf, device, dtype).sum().backward()
    assert leaf.grad is not None


def test_sum_event_leaves_the_batch() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert sum_event(x).tolist() == [66.0, 210.0]
    assert sum_event(x.transpose(1, 2)).tolist() == [66.0, 210.0]
