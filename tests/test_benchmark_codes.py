"""Pages and pictures of the benchmarks `codes` and `distill`, and the control that codes are held against."""

import dataclasses
from pathlib import Path

import pytest
import torch

import sde
from benchmarks import codes, distill


def test_the_control_is_the_gaussian_of_the_data() -> None:
    """A code is as many standard deviations from the mean as its point, direction by direction."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=g) * torch.tensor([2.0, 0.5]) + 1
    ends = torch.tensor([80.0, 0.002]).double()
    variance = x.double().T.cov().diagonal() + 1e-4
    stretch = ((variance + ends[0] ** 2) / (variance + ends[1] ** 2)).sqrt()
    code = sde.inverse.encode(codes.control(x), x[:5].double(), steps=200)
    wanted = x.mean(0).double() + stretch * (x[:5].double() - x.mean(0).double())
    torch.testing.assert_close(code, wanted, rtol=0.03, atol=2.0)  # of 80; the two coordinates are all but uncorrelated


@pytest.mark.parametrize("name", ["codes", "distill"])
def test_page_and_picture(name: str, tmp_path: Path) -> None:
    books = codes.measure(codes.TINY) if name == "codes" else [distill.on("two moons", distill.TINY)]
    module = {"codes": codes, "distill": distill}[name]
    module.picture(books, tmp_path / "made.png")
    assert (tmp_path / "made.png").stat().st_size > 10_000
    page = module.report(books)
    assert "nan" not in page
    assert all(f"## {book.name}" in page for book in books)
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) == (3 + 6 + 2 * 3 if name == "codes" else 5)


def test_networks_that_learnt_nothing_agree_and_the_exact_code_tells() -> None:
    """Why the exact code stands beside: agreement alone is no proof of learning."""
    found = codes.measure(dataclasses.replace(codes.TINY, points=1, digits=1))[0].pairs
    assert found["MLP 64 wide, MLP 40 wide"].ratio < 0.05
    assert found["exact, MLP 64 wide"].ratio > 0.2
