"""Linear combinations in one kernel: the same numbers as one kernel for each term."""

import pytest
import torch
from torch import Tensor

from sde import fused
from sde.shape import lincomb, total

NUMBERS = [0.7, -1.3, 2.0, 1e-3, -0.4, 1.0, 5.5, -2.5, 0.1, 3.0]


def plainly(numbers: list[float], tensors: list[Tensor]) -> Tensor:
    return sum((c * x.double() for c, x in zip(numbers, tensors, strict=True)), torch.zeros(())).to(tensors[0].dtype)


@pytest.mark.parametrize("n", range(1, 11))
def test_a_total_is_the_sum_of_its_terms(n: int) -> None:
    tensors = [torch.randn(3, 2, dtype=torch.float64) for _ in range(n)]
    torch.testing.assert_close(total(*zip(NUMBERS[:n], tensors, strict=True)), plainly(NUMBERS[:n], tensors))
    nothing = [0.0] * n
    assert not total(*zip(nothing, tensors, strict=True)).any()


def test_it_is_off_but_where_it_is_asked_for() -> None:
    assert not fused.on
    try:
        with fused.fusing(), fused.fusing():
            raise KeyError
    except KeyError:
        assert not fused.on


def test_on_a_cpu_nothing_changes() -> None:
    u, w = torch.randn(3, 2), torch.randn(3, 2)
    with fused.fusing():
        assert fused.combination([(0.3, u), (0.7, w)]) is None
        together = lincomb(0.3, u, 0.7, w)
    assert torch.equal(together, lincomb(0.3, u, 0.7, w))


needs_triton = pytest.mark.skipif(not fused.installed(), reason="needs Triton")


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("n", range(2, 11))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1000, 2), (5, 3, 33, 31)], ids=str)
def test_on_a_gpu_it_is_one_kernel_and_the_same_sum(n: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = [torch.randn(shape, device="cuda").to(dtype) for _ in range(n)]
    found = fused.combination(list(zip(NUMBERS, tensors, strict=False)))
    assert found is not None
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(found, plainly(NUMBERS[:n], tensors), rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@needs_triton
def test_layouts() -> None:
    image = torch.randn(4, 3, 8, 8, device="cuda")
    last = image.to(memory_format=torch.channels_last)
    for same in ([image, 2 * image], [last, 2 * last]):
        found = fused.combination(list(zip(NUMBERS, same, strict=False)))
        assert found is not None
        assert found.stride() == same[0].stride()
        torch.testing.assert_close(found, plainly(NUMBERS[:2], same))
    leaf = image.clone().requires_grad_()
    for unlike in (
        [image, last], [image, image.double()], [image, image[:2]], [image.double(), image.double()],
        [image, leaf], [image.mT, image.mT], [image, image.cpu()], [image[:0], image[:0]],
    ):  # fmt: skip
        assert fused.combination(list(zip(NUMBERS, unlike, strict=False))) is None
    with torch.no_grad():
        assert fused.combination([(1.0, image), (2.0, leaf)]) is not None
    with fused.fusing():
        torch.testing.assert_close(lincomb(0.5, image, 2.0, last), 0.5 * image + 2 * last)
