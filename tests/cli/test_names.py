"""The tables of names hold all that there is."""

import inspect

import pytest
import torch

import sde
from sde.cli.choice import Choice, arguments, make
from sde.cli.names import DATA, NETS, SDES, SOLVERS, TABLES
from sde.solvers import grids


def needs_arguments(cls: type) -> bool:
    return any(
        p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in inspect.signature(cls).parameters.values()
    )


def public(room, kind) -> set[str]:
    things = [getattr(room, name) for name in room.__all__]
    return {c.__name__ for c in things if inspect.isclass(c) and issubclass(c, kind) and not inspect.isabstract(c)}


def test_every_forward_sde_has_a_name():
    made = {type(factory()).__name__ for factory in SDES.values()}
    # MatrixSDE and FromCoefficients are made of matrices and functions, which no command line can say
    assert made == public(sde, sde.ForwardSDE) - {"MatrixSDE", "FromCoefficients"}


def test_every_solver_has_a_name():
    assert set(SOLVERS) == public(sde, sde.Solver) - {"Restart"}  # no command line can say its intervals


def test_every_data_set_has_a_name():
    functions = {name for name in sde.data.__all__ if inspect.isfunction(getattr(sde.data, name))}
    named = {f.__name__ for f in DATA.values()}
    assert named == functions - {"to_uint8", "from_uint8", "flip"}


def test_every_network_has_a_name():
    parts, classifiers = {"Fourier", "Sinusoidal", "Conditioning", "Cast"}, {"MLPClassifier", "UNetClassifier"}
    assert set(NETS) == public(sde.nets, torch.nn.Module) - parts - classifiers


@pytest.mark.parametrize("name", list(TABLES["grid"]))
def test_grids_are_those_of_the_library(name):
    times = make("grid", Choice(name), sde=sde.VP(), steps=5, scale=1.0)
    torch.testing.assert_close(times, getattr(grids, name)(sde.VP(), 5))


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, table in TABLES.items() for n in table])
def test_arguments_of_everything_can_be_read(kind, name):
    assert all(not isinstance(p.annotation, str) for p in arguments(kind, name).values())
