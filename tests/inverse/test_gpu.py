"""Guidance and posterior methods on a GPU: the numbers of the CPU, and recorded as graphs the numbers of the loop."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import sde
from sde import inverse
from sde.score import Classifier

Made = tuple[sde.Model, sde.solvers.Solver]


def nets(device: str) -> tuple[sde.ScoreModel, Classifier]:
    torch.manual_seed(0)
    net, judge = sde.nets.MLP(dim=3, width=16, classes=2), sde.nets.MLPClassifier(3, 2, width=8)
    nn.init.normal_(net.outward.weight, std=0.1)
    nn.init.normal_(judge.outward.weight, std=0.1)
    return sde.ScoreModel(net, sde.VP(), mean=[0.1, 0.2, 0.0]).to(device), Classifier(judge, sde.VP()).to(device)


def observed(device: str) -> inverse.Observation:
    rows = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5]])
    return inverse.Observation(inverse.Matrix(rows), torch.tensor([[0.7, -0.4]]), 0.3).to(device)


def guided(make: Callable[[sde.ScoreModel, Classifier], sde.Model]) -> Callable[[str], Made]:
    return lambda device: (make(*nets(device)), sde.Heun())


def model(kind: Callable[[sde.Model, inverse.Observation], sde.Model]) -> Callable[[str], Made]:
    return lambda device: (kind(nets(device)[0], observed(device)), sde.Ancestral())


def solver(make: Callable[[inverse.Observation], sde.solvers.Solver]) -> Callable[[str], Made]:
    return lambda device: (nets(device)[0], make(observed(device)))


METHODS: dict[str, Callable[[str], Made]] = {
    "CFG": guided(lambda m, c: sde.CFG(m.given(label=torch.ones(4, dtype=torch.int64)), m, 2.0)),
    "Autoguidance": guided(lambda m, c: sde.Autoguidance(m, m, 2.0)),
    "ClassifierGuidance": guided(lambda m, c: sde.ClassifierGuidance(m, c, 1, 2.0)),
    "Product": guided(lambda m, c: sde.Product([m, m.given(label=torch.zeros(4, dtype=torch.int64))])),
    "Temperature": guided(lambda m, c: sde.Temperature(m, 0.7)),
    **{n: model(getattr(inverse, n)) for n in ("DPS", "PiGDM", "MMPS", "TMPD", "DiffPIR", "DDNM")},
    **{
        n: solver(getattr(inverse, n))
        for n in ("DPSSolver", "PiGDMSolver", "DiffPIRSolver", "MCG", "DDRM", "SplitGibbs", "TDS")
    },
    "Replacement": solver(lambda o: inverse.Replacement(sde.Ancestral(), o)),
    "RePaint": solver(lambda o: inverse.RePaint(sde.Ancestral(), o, jump=2, resamplings=2)),
}

SELF_PACED = ("SplitGibbs", "TDS", "RePaint")


def drawn(name: str, device: str, on: str = "cpu", compile: bool = False) -> torch.Tensor:
    guided_model, rule = METHODS[name](device)
    generator = torch.Generator(on).manual_seed(3)
    return sde.sample(guided_model.to(device), (4, 3), 8, rule, generator=generator, compile=compile, progress=False)


@pytest.mark.filterwarnings("ignore:.*emperature")
@pytest.mark.parametrize("name", METHODS)
def test_finite_here(name: str) -> None:
    assert bool(drawn(name, "cpu").isfinite().all())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*emperature")
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_gives_what_the_cpu_gives(name: str) -> None:
    torch.testing.assert_close(drawn(name, "cuda").cpu(), drawn(name, "cpu"), rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*emperature")
@pytest.mark.parametrize("name", METHODS)
def test_a_graph_gives_what_the_loop_gives(name: str) -> None:
    if name in SELF_PACED:
        with pytest.raises(ValueError, match=f"{name} chooses its own"):
            drawn(name, "cuda", "cuda", compile=True)
        return
    one, two = (drawn(name, "cuda", "cuda", compile=flag) for flag in (False, True))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
