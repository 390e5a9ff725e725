"""What tests share: seeds, dtypes, every shipped SDE, and hypothesis without a stopwatch."""

import os
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch

import sde

# The first example pays for imports, so a deadline would fail at random. CI searches the same examples every
# time, so that it fails by a change and not by chance; the nightly run searches wider.
hypothesis.settings.register_profile("local", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("local"), derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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


# Every forward SDE that is shipped, and two that a reader could write.
OSCILLATOR = {"F": [[0, 1], [-1, -2]], "G": [[0, 0], [0, 2]], "embed": [1, 0], "cov0": [[0, 0], [0, 0.04]]}
ZOO: dict[str, Callable[[], sde.ForwardSDE]] = {
    "VP": sde.VP,
    "SubVP": sde.SubVP,
    "VE": sde.VE,
    "EDM": sde.EDM,
    "Cosine": sde.Cosine,
    "Flow": sde.Flow,
    "OrnsteinUhlenbeck": sde.OrnsteinUhlenbeck,
    "Tabulated.linear": sde.Tabulated.linear,
    "Tabulated.cosine": lambda: sde.Tabulated.cosine(100),
    "FromCoefficients": lambda: sde.FromCoefficients(f=lambda t: -t, g=lambda t: 1 + t),
    "CLD": sde.CLD,
    "ThirdOrderLangevin": sde.ThirdOrderLangevin,
    "MatrixSDE": lambda: sde.MatrixSDE(**OSCILLATOR),
}


@pytest.fixture(params=ZOO)
def any_sde(request: pytest.FixtureRequest) -> sde.ForwardSDE:
    """Each forward SDE in turn."""
    return ZOO[request.param]()
