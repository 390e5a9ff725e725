"""Nodes of a run: numbers that know their table, and columns made once."""

from dataclasses import dataclass

import pytest
import torch

import sde
from sde.nodes import REMEMBERED, Node, Table, by_value, remembered, tabulated


class Counted:
    def __init__(self) -> None:
        self.asked: list[torch.Tensor] = []

    @tabulated
    def pair(self, t: torch.Tensor) -> tuple[torch.Tensor, float]:
        self.asked.append(t)
        return 2 * t, 3.0

    @tabulated
    def matrix(self, t: torch.Tensor) -> torch.Tensor:
        return t[:, None].expand(-1, 2)


TIMES = torch.tensor([1.0, 0.6, 0.1])


def test_a_node_is_a_number_in_double_precision() -> None:
    nodes = Table(torch.tensor([1.0, 0.6, 0.1], dtype=torch.float64)).nodes
    assert nodes == [1.0, 0.6, 0.1]
    assert all(type(node) is Node and isinstance(node, float) for node in nodes)
    assert type(nodes[0] - nodes[1]) is float


def test_a_column_is_made_once_for_the_whole_grid_and_looked_up() -> None:
    owner, table = Counted(), Table(TIMES, stages=[TIMES[:-1]])
    rows = [owner.pair(node) for node in table.all]
    assert len(owner.asked) == 1
    assert owner.asked[0].dtype == torch.float64
    assert rows == [(2 * float(t), 3.0) for t in table.all]
    assert all(type(c) is float for row in rows for c in row)
    assert owner.matrix(table.nodes[1]).tolist() == [table.nodes[1]] * 2


def test_a_tensor_of_times_is_computed_as_written() -> None:
    owner = Counted()
    twice, three = owner.pair(torch.tensor([0.5, 0.25]))
    assert twice.tolist() == [1.0, 0.5]
    assert three == 3.0


def test_each_table_and_each_owner_has_its_own_column() -> None:
    one, other = Counted(), Counted()
    for table in (Table(TIMES), Table(2 * TIMES)):
        assert one.pair(table.nodes[0])[0] == other.pair(table.nodes[0])[0] == 2 * table.nodes[0]
    assert len(one.asked) == len(other.asked) == 2


def test_a_table_keeps_its_owners_alive_so_that_no_id_is_met_twice() -> None:
    table = Table(TIMES)
    for k in range(20):  # were owners let go, a new one would take the id, and the column, of an old one
        flow = sde.EDM(0.001 * (k + 1), 80.0)
        assert flow.levels(table.nodes[0]) == (1.0, 1.0)
        vp = sde.VP(beta_max=1.0 + k)
        assert vp.levels(table.nodes[0])[0] == pytest.approx(float(vp.alpha(torch.tensor(1.0))), rel=1e-6)
        del flow, vp


def test_by_value() -> None:
    class Named:
        pass

    @dataclass
    class Loose:
        rate: float = 1.0

    @dataclass(frozen=True, eq=False)
    class Unequal:
        rate: float = 1.0

    for thing in (1, 0.5, "word", None, True, (1.0, ("a", None)), sde.VP(), sde.CLD(), sde.score.model.Regression(
        sde.EDM(), "edm", 0.5,
    )):  # fmt: skip
        assert by_value(thing)
    for thing in (
        [1.0], torch.ones(1), Named(), Loose(), Unequal(), sde.Tabulated.linear(),
        sde.FromCoefficients(f=lambda t: -t, g=lambda t: 1 + t), (1.0, [2.0]),
        sde.score.model.Regression(sde.Tabulated.linear(), "edm", 0.5),
    ):  # fmt: skip
        assert not by_value(thing)


def test_numbers_of_equal_schedules_are_made_once_for_equal_times() -> None:
    asked = []

    @dataclass(frozen=True)
    class Slow(sde.Flow):
        rate: float = 1.0

        def rates(self, t: torch.Tensor) -> tuple:
            asked.append(t)
            return super().rates(self.rate * t)

    rows = [Slow().all_rates(Table(TIMES).nodes[1]) for _ in range(3)]
    assert len(asked) == 1
    assert rows[0] == rows[1] == rows[2]
    Slow().all_rates(Table(0.5 * TIMES).nodes[1])
    assert Slow(rate=0.5).all_rates(Table(TIMES).nodes[1]) != rows[0]
    assert len(asked) == 3


def test_what_may_change_is_made_anew() -> None:
    class Changing(sde.ScalarSDE):
        slope = 1.0

        def alpha(self, t: torch.Tensor) -> torch.Tensor:
            return 1 - self.slope * t / 2

        def sigma(self, t: torch.Tensor) -> torch.Tensor:
            return t

    changing, grid = Changing(), torch.linspace(1, 0.1, 5)
    model = sde.ScoreModel(torch.nn.Identity(), changing)
    model.net.forward = lambda x, c: x  # type: ignore[method-assign]
    x, ends = torch.ones(2, 2), []
    for slope in (1.0, 0.5, 1.0):
        changing.slope = slope
        ends.append([sde.integrate(sde.ReverseSDE(model), x, grid, s) for s in (sde.Euler(), sde.Adams(2))])
    for one, two, three in zip(*ends, strict=True):
        assert torch.equal(one, three)
        assert not torch.equal(one, two)


def test_few_things_are_remembered() -> None:
    for i in range(REMEMBERED + 5):
        assert remembered(("count", i), lambda i=i: [i]) == [i]
    assert remembered(("count", 5), lambda: ["anew"]) == [5]
    assert remembered(("count", 4), lambda: ["anew"]) == ["anew"]


def test_solvers_of_other_settings_do_not_share_coefficients() -> None:
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=2, width=8)
    torch.nn.init.normal_(net.outward.weight)
    x, grid = torch.ones(2, 2), torch.linspace(1, 0.1, 8)
    kinds = [{"order": 2}, {"order": 3}, {"order": 3, "corrector": False}, {"order": 3, "predict": "eps"}]
    models = [sde.ScoreModel(net, f, scale=s) for f, s in ((sde.VP(), 1.0), (sde.VP(), 2.0), (sde.Flow(), 1.0))]
    ends = [
        [sde.integrate(sde.ReverseSDE(model), x, grid, sde.Adams(**kind)) for model in models for kind in kinds]
        for _ in range(2)
    ]
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))
    assert len({tuple(end.flatten().tolist()) for end in ends[0]}) == len(ends[0])


class TwoStages(sde.Euler):
    fractions = (0.5, 0.25)


def test_times_inside_a_step() -> None:
    solver, forward = TwoStages(), sde.VP()
    table = Table(TIMES, solver.stages(forward, TIMES.double()))
    t, s = table.nodes[:2]
    for k, fraction in enumerate(solver.fractions):
        inside = solver.stage(forward, t, s, k)
        assert type(inside) is Node
        assert inside == pytest.approx(t + fraction * (s - t))
    assert type(solver.stage(forward, table.nodes[0], table.nodes[2], 0)) is not Node
    assert solver.stage(forward, 1.0, 0.0, 0) == 0.5
    assert len(table.all) == 3 + 2 * 2
    last = solver.stage(forward, table.nodes[1], table.nodes[2], 1)
    assert last == pytest.approx(0.6 - 0.25 * 0.5)


@pytest.mark.parametrize("down", [True, False])
def test_nodes_run_either_way(down: bool) -> None:
    times = TIMES if down else TIMES.flip(0)
    table = Table(times, TwoStages().stages(sde.VP(), times.double()))
    assert table.nodes == times.double().tolist()
    assert TwoStages().stage(sde.VP(), *table.nodes[:2], 0) == pytest.approx(float(times[:2].mean()))
