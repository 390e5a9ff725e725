"""The benchmark of objectives: entropies against numerical integration, its judge against closed forms, a whole run."""

import sys
from pathlib import Path

import pytest
import torch

import sde

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import objectives, objectives_report
from benchmarks.peers import quiet

pytestmark = pytest.mark.filterwarnings("ignore")  # peers warn of their own old habits


@pytest.mark.parametrize("name", list(objectives.DATA))
def test_entropy_is_that_of_a_histogram(name: str) -> None:
    """-sum p log p of a million points in cells a tenth of the finest structure: a little too large, as cells blur."""
    given = objectives.DATA[name](1_000_000, generator=objectives.seeded(0))
    cells, half = 160, 3.2
    where = ((given.x / half + 1) / 2 * cells).long().clamp(0, cells - 1)
    share = torch.bincount(where[:, 0] * cells + where[:, 1], minlength=cells**2).double() / len(given.x)
    share = share[share > 0]
    found = -float((share * (share / (2 * half / cells) ** 2).log()).sum())
    said = objectives.entropy(name, given.x[:5000], given)
    assert said == pytest.approx(found, abs=0.08)


def test_a_peers_velocity_is_judged_as_what_it_is() -> None:
    """Straight paths from N(0, 1) to N(0, v), whose velocity is known, in a peer's time: noise at 0."""
    v = 0.49

    class Velocity(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            t = t[:, None]
            return (t * v - (1 - t)) / (t**2 * v + (1 - t) ** 2) * x

    x = v**0.5 * torch.randn(200, 2, generator=objectives.seeded(1))
    exact = torch.distributions.Normal(0.0, v**0.5).log_prob(x).sum(1)
    with torch.no_grad():
        found = objectives.judged(objectives.of_a_peer(Velocity()), x)
    assert found == pytest.approx(-float(exact.mean()), abs=2e-3)


@pytest.mark.slow
def test_the_whole_run_makes_its_page_and_picture(tmp_path: Path) -> None:
    with quiet():
        result = objectives.measure(seconds=0.01, seeds=1, test=40, turn=2, rounds=1)
    assert set(result.nats) == set(objectives.DATA)
    assert len([way for way in result.steps if way.startswith(objectives.OURS)]) == 10
    page = objectives_report.report(result)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert len(rows) == len(result.steps) + 3
    objectives_report.picture(result, tmp_path / "objectives.png")
    assert (tmp_path / "objectives.png").stat().st_size > 5000


def test_ways_of_ours_train_what_they_say() -> None:
    """Coupled only by optimal transport, and each leaves a model that can be judged."""
    x = sde.data.moons(200, generator=objectives.seeded(2)).x
    for way in objectives.ways([])[:10]:
        run, model = way.begin(objectives.Net(), x)
        with quiet():
            run(1)
        assert model().coupled == ("OT" in way.name)
