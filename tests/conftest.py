"""What every test shares: one thread, no window, seeds, and hypothesis without a stopwatch."""

import os
import sys
from collections.abc import Callable, Iterator

# Threads and backend are read at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The first example pays for imports, so a deadline would fail at random. CI searches the same examples every
# time, so that it fails by a change and not by chance; the nightly run searches wider.
hypothesis.settings.register_profile("local", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("local"), derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """Give networks the same weights in every run of a test, and close the figures it drew."""
    torch.manual_seed(0)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def seeded() -> Callable[[int], torch.Generator]:
    """A function from a seed to a CPU generator."""
    return lambda seed: torch.Generator().manual_seed(seed)


@pytest.fixture
def generator(seeded: Callable[[int], torch.Generator]) -> torch.Generator:
    """A CPU generator of seed 0."""
    return seeded(0)


@pytest.fixture
def float64() -> Iterator[torch.dtype]:
    """Make float64 the default dtype for one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(before)
