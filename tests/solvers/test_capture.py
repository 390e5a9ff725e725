"""Recorded runs: on the CPU with a recorder that runs again, on a GPU with CUDA graphs; and a loop that never waits."""

import gc
import importlib
import pkgutil
import weakref
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.score.model import Given, Wrapper
from sde.solvers import SelfPaced, Solver, capture

STEPS = 12  # on a GPU three graphs
Work = Callable[[], Iterator[Tensor]]


def every() -> list[Solver]:
    """One of each solver in the package, as it comes."""
    predictor = sde.EulerMaruyama()
    made: list[Solver] = [sde.PredictorCorrector(predictor, c) for c in (sde.Langevin(), sde.AnnealedLangevin())]
    for info in pkgutil.walk_packages(sde.solvers.__path__, "sde.solvers."):
        module = importlib.import_module(info.name)
        for name, kind in vars(module).items():
            own = isinstance(kind, type) and kind.__module__ == info.name and issubclass(kind, Solver)
            if own and not name.startswith("_") and not kind.__abstractmethods__ and name != "Transition":
                try:
                    made.append(kind())
                except (TypeError, AttributeError):  # it is made of others, or a base
                    continue
    return made


def called(solver: Solver) -> str:
    inner = getattr(solver, "corrector", None)
    return type(solver).__name__ + (f"-{type(inner).__name__}" if isinstance(inner, Solver) else "")


def network(classes: int = 0, width: int = 16) -> sde.nets.MLP:
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=2, width=width, classes=classes)
    nn.init.normal_(net.outward.weight, std=0.1)
    return net


def head(model: sde.ScoreModel) -> nn.Linear:
    net = model.net
    assert isinstance(net, sde.nets.MLP)
    return net.outward


def fits(solver: Solver, model: sde.Model) -> bool:
    try:
        solver.check(sde.ReverseSDE(model, solver.eta))
    except ValueError:
        return False
    return True


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of what was recorded, by a recorder that needs no GPU: its replay does the work again."""
    names: list[str] = []

    def record(work: Work, tape: capture.Tape, device: torch.device, name: str) -> tuple[list[capture.Piece], Tensor]:
        names.append(name)
        (out,) = deque(work(), 1)
        out = out.clone()

        def replay() -> None:
            out.copy_(*deque(work(), 1))

        return [(lambda: None, tape.drawn // 2), (replay, tape.drawn)], out

    monkeypatch.setattr(capture, "_record", record)
    monkeypatch.setattr(capture, "DEVICES", ("cpu",))
    return names


@pytest.mark.parametrize("solver", every(), ids=called)
def test_a_replay_gives_what_the_loop_gives(solver: Solver, recordings: list[str]) -> None:
    model = sde.ScoreModel(network(), sde.VP())
    if isinstance(solver, SelfPaced):
        with pytest.raises(ValueError, match="chooses its own as it goes: use compile=False"):
            sde.sample(model, (4, 2), STEPS, solver, compile=True)
        return
    if not fits(solver, model):
        pytest.skip("not for a scalar SDE")
    for seed in range(3):
        plain = sde.sample(model, (4, 2), STEPS, solver, generator=seeded(seed))
        assert torch.equal(sde.sample(model, (4, 2), STEPS, solver, generator=seeded(seed), compile=True), plain)
    assert recordings == [f"{type(solver).__name__} on ScoreModel"]


def test_a_matrix_sde_by_default(recordings: list[str]) -> None:
    model = sde.ScoreModel(network(), sde.CLD())
    one, two = (sde.sample(model, (4, 2), STEPS, generator=seeded(0), compile=flag) for flag in (False, True))
    assert torch.equal(one, two)
    assert recordings == ["MatrixAdams on ScoreModel"]


def test_one_generator_for_each_sample(recordings: list[str]) -> None:
    model = sde.ScoreModel(network(), sde.VP())
    draw = [
        sde.sample(model, (3, 2), 4, sde.Ancestral(), generator=[seeded(i) for i in range(3)], compile=flag)
        for flag in (False, True, True)
    ]
    assert torch.equal(draw[0], draw[1])
    assert torch.equal(draw[0], draw[2])


def test_the_global_generator_is_left_as_the_loop_leaves_it(recordings: list[str]) -> None:
    model, after = sde.ScoreModel(network(), sde.VP()), []
    for flag in (False, True, True):
        torch.manual_seed(3)
        sde.sample(model, (4, 2), 4, sde.Ancestral(), compile=flag)
        after.append(torch.rand(1).item())
    assert len(set(after)) == 1


def test_what_makes_another_run_is_recorded_anew(recordings: list[str]) -> None:
    model = sde.ScoreModel(network(), sde.VP())
    calls: list[Callable[[], Tensor]] = [
        lambda: sde.sample(model, (4, 2), 4, compile=True),
        lambda: sde.sample(model, (5, 2), 4, compile=True),
        lambda: sde.sample(model, (4, 2), 5, compile=True),
        lambda: sde.sample(model, (4, 2), times=[1.0, 0.5, 0.1], compile=True),
        lambda: sde.sample(model, (4, 2), times=torch.tensor([1.0, 0.6, 0.1]), compile=True),
        lambda: sde.sample(model, (4, 2), 4, sde.DDIM(), compile=True),
        lambda: sde.sample(model, (4, 2), 4, sde.DDIM(), eta=0.5, compile=True),
        lambda: sde.sample(model, (4, 2), 4, sde.Adams(order=2), compile=True),
        lambda: sde.sample(model, x=torch.randn(4, 2, dtype=torch.float64).float().T.contiguous().T, compile=True),
    ]
    for done, call in enumerate(calls, 1):
        call()
        call()
        assert len(recordings) == done
    assert len(capture._GRAPHS[model]) == capture.KEPT  # the oldest are let go
    calls[0]()
    assert len(recordings) == len(calls) + 1


def test_weights_are_read_where_they_lie(recordings: list[str]) -> None:
    model = sde.ScoreModel(network(), sde.VP())

    def both() -> list[Tensor]:
        return [sde.sample(model, (4, 2), 4, generator=seeded(0), compile=flag) for flag in (True, False)]

    before = both()
    with torch.no_grad():
        head(model).weight.mul_(2)  # in place, as training does
    after = both()
    assert len(recordings) == 1
    assert torch.equal(*before)
    assert torch.equal(*after)
    assert not torch.equal(before[0], after[0])
    head(model).weight = nn.Parameter(torch.zeros(2, 16))  # elsewhere
    assert torch.equal(*both())
    assert len(recordings) == 2


def test_conditions_are_copied_in_and_a_guidance_scale_is_not(recordings: list[str]) -> None:
    model = sde.ScoreModel(network(classes=3), sde.VP())
    for scale, runs in ((2.0, 1), (3.0, 2)):
        for label in (torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 0])):
            given = Given(model, label=label)
            guided = sde.CFG(given, model, scale)
            one, two = (sde.sample(guided, (4, 2), 4, generator=seeded(0), compile=flag) for flag in (False, True))
            assert torch.equal(one, two)
            assert given.cond["label"] is label
        assert len(recordings) == runs


def test_attributes_of_the_model_and_of_the_solver_count(recordings: list[str]) -> None:
    class Odd(sde.Euler):
        def __init__(self, items: object) -> None:
            self.items = items

    model, unhashable = sde.ScoreModel(network(), sde.VP()), {1, 2}
    for items in (1, "one", [1, 2], {"a": torch.ones(2)}, {"a": torch.zeros(2)}, unhashable, sde.Euler()):
        before = len(recordings)
        for _ in range(2):
            sde.sample(model, (4, 2), 4, Odd(items), compile=True)
            assert len(recordings) == before + 1
    model.scale = 2.0
    one, two = (sde.sample(model, (4, 2), 4, generator=seeded(0), compile=flag) for flag in (False, True))
    assert torch.equal(one, two)


def test_runs_go_with_their_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_record", lambda work, tape, device, name: ([], *deque(work(), 1)))
    monkeypatch.setattr(capture, "DEVICES", ("cpu",))
    model = sde.ScoreModel(network(classes=3), sde.VP())
    sde.sample(model.given(label=torch.zeros(4, dtype=torch.long)), (4, 2), 4, sde.Ancestral(), compile=True)
    (found,) = capture._GRAPHS[model].values()
    assert any(
        isinstance(row[-1], Tensor) for row in found.kept[0].values() for row in row
    )  # clocks: a graph reads them
    gone = [weakref.ref(model), weakref.ref(found)]
    del model, found
    gc.collect()  # a table and its nodes know one another
    assert [ref() for ref in gone] == [None, None]


def test_forget(recordings: list[str]) -> None:
    model = sde.ScoreModel(network(), sde.VP())
    for _ in range(2):
        sde.sample(model, (4, 2), 4, compile=True)
        capture.forget(sde.CFG(model, model, 1.0))
    assert len(recordings) == 2


def test_on_a_cpu_it_says_that_it_does_nothing() -> None:
    model = sde.ScoreModel(network(), sde.VP())
    with pytest.warns(UserWarning, match=r"compile=True has no effect on cpu: .*model.net.compile\(\)") as seen:
        compiled = sde.sample(model, (4, 2), 4, generator=seeded(0), compile=True)
    assert seen[0].filename == __file__
    assert torch.equal(compiled, sde.sample(model, (4, 2), 4, generator=seeded(0)))


def test_given_noise_is_refused(recordings: list[str]) -> None:
    model = sde.ScoreModel(network(), sde.VP())
    with pytest.raises(ValueError, match="compile=True draws its noise before the run: leave noise=None"):
        sde.sample(model, (4, 2), 4, sde.Ancestral(), noise=sde.BrownianPath(), compile=True)


# On a GPU.

MATRICES_BY_STEP = ("ReverseDiffusion",)
"""Solvers that copy a matrix SDE's matrices to the device as they go."""

gpu = pytest.mark.gpu


@pytest.fixture
def never_waiting() -> Iterator[None]:
    with capture._no_waiting():
        yield


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("solver", every(), ids=called)
def test_the_loop_never_waits(solver: Solver, dtype: torch.dtype) -> None:
    if isinstance(solver, SelfPaced):
        pytest.skip("chooses its steps by what it sees")
    ran = 0
    for forward in (sde.VP(), sde.CLD()):
        model = sde.ScoreModel(network(), forward, mean=[0.1, 0.2]).to("cuda", dtype)
        if not fits(solver, model):
            continue
        reverse, times = sde.ReverseSDE(model, solver.eta), sde.solvers.default_times(model, STEPS)
        for generator in (None, seeded(0, "cuda"), seeded(0), [seeded(i) for i in range(4)]):
            x = model.prior(torch.zeros(4, 2, device="cuda", dtype=dtype), seeded(1))
            with torch.no_grad():
                states = sde.trajectory(reverse, x, times, solver, generator)  # looks at x once
                with capture._no_waiting():
                    for state in states:
                        x = state.x
            assert x.dtype == dtype
            assert bool(x.isfinite().all())
            ran += 1
    assert ran


@gpu
def test_guidance_never_waits() -> None:
    model = sde.ScoreModel(network(classes=3), sde.EDM()).cuda()
    guided = sde.CFG(model.given(label=torch.tensor([0, 1, 2, 0], device="cuda")), model, 2.0)

    class Plain(Wrapper):  # a model that sees times as tensors
        def forward(self, x: Tensor, t: Tensor) -> sde.forward.Point:
            return self.model(x, t)

    for each in (guided, Plain(guided)):
        states = sde.trajectory(
            sde.ReverseSDE(each), torch.randn(4, 2, device="cuda"), sde.solvers.default_times(each, STEPS), sde.Heun()
        )
        with torch.no_grad(), capture._no_waiting():
            assert len(list(states)) == STEPS + 1


@gpu
@pytest.mark.parametrize("solver", every(), ids=called)
def test_a_graph_gives_what_the_loop_gives(solver: Solver) -> None:
    if isinstance(solver, SelfPaced):
        pytest.skip("chooses its steps by what it sees")
    ran = 0
    for forward in (sde.VP(), sde.Flow(), sde.CLD()):
        model = sde.ScoreModel(network(), forward).cuda()
        if not fits(solver, model):
            continue
        if isinstance(forward, sde.CLD) and called(solver) in MATRICES_BY_STEP:
            with pytest.raises(ValueError, match=f"compile=True cannot record {type(solver).__name__}"):
                sde.sample(model, (64, 2), STEPS, solver, compile=True)
            ran += 1
            continue
        scalar = isinstance(forward, sde.ScalarSDE)  # an explicit rule makes much of a rounding on the stiff matrix SDE
        for seed in range(2):
            for generator in (lambda: seeded(seed), lambda: seeded(seed, "cuda")):  # noqa: B023
                one, two = (
                    sde.sample(model, (64, 2), STEPS, solver, generator=generator(), compile=flag)
                    for flag in (False, True)
                )
                assert float((one - two).norm() / one.norm()) < (1e-5 if scalar else 1e-3)
        assert len(capture._GRAPHS[model]) == 1
        ran += 1
    assert ran


@gpu
def test_a_graph_reads_new_weights_and_new_labels() -> None:
    model = sde.ScoreModel(network(classes=3), sde.VP()).cuda()
    for scale in (1.0, 2.0):
        with torch.no_grad():
            head(model).weight.mul_(scale)
        for label in (torch.tensor([0, 1, 2, 0]).cuda(), torch.tensor([2, 2, 1, 0]).cuda()):
            guided = sde.CFG(model.given(label=label), model, 2.0)
            one, two = (sde.sample(guided, (4, 2), STEPS, generator=seeded(0), compile=flag) for flag in (False, True))
            torch.testing.assert_close(one, two)
    assert len(capture._GRAPHS[model]) == 1


@gpu
@pytest.mark.parametrize("look", ["item", "copy"])
def test_a_network_that_looks_is_refused_and_the_next_is_not(look: str) -> None:
    class Looking(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return x * c[0].item() if look == "item" else x * torch.ones(2).to(x)

    model = sde.ScoreModel(Looking(), sde.VP()).cuda()
    x = torch.randn(4, 2, device="cuda")
    with pytest.raises(ValueError, match=r"compile=True cannot record Adams on ScoreModel: .*use compile=False"):
        sde.sample(model, x=x, compile=True)
    assert torch.cuda.get_sync_debug_mode() == 0
    good = sde.ScoreModel(network(), sde.VP()).cuda()
    torch.testing.assert_close(sde.sample(good, x=x, compile=True), sde.sample(good, x=x))


@gpu
def test_memory_goes_with_the_model() -> None:
    def used() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    sde.sample(sde.ScoreModel(network(), sde.VP()).cuda(), (4, 2), 4, compile=True)  # libraries' own
    before = used()
    for _ in range(3):
        model = sde.ScoreModel(network(), sde.VP()).cuda()
        sde.sample(model, (100_000, 2), 4, sde.Ancestral(), compile=True)
        held = used()
        del model
    assert held > before
    assert used() <= before
