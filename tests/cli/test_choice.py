"""From a name and arguments to an object, and what is refused on the way."""

import pytest

import sde
from sde.cli.choice import Choice, Text, choose, convert, make
from sde.cli.mistakes import Mistake


def test_choice_makes_the_object_with_its_arguments():
    made = make("sde", choose("sde", {"name": "EDM", "sigma_max": Text("10")}, "sde"))
    assert made == sde.EDM(sigma_max=10.0)


def test_argument_without_a_name_changes_the_default():
    default = Choice("EDM", {"sigma_min": 0.01})
    assert make("sde", choose("sde", {"sigma_max": 5}, "sde", default)) == sde.EDM(0.01, 5.0)
    assert make("sde", choose("sde", "VP", "sde", default)) == sde.VP()


def test_solver_inside_a_solver():
    tree = {
        "name": "PredictorCorrector",
        "predictor": Text("ReverseDiffusion"),
        "corrector": {"name": "Langevin", "snr": Text(".1")},
        "steps": Text("2"),
    }
    made = make("solver", choose("solver", tree, "solver"))
    assert isinstance(made.predictor, sde.ReverseDiffusion)
    assert isinstance(made.corrector, sde.Langevin)
    assert (made.corrector.snr, made.steps) == (0.1, 2)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("EDN", "unknown SDE 'EDN', did you mean EDM?"),
        ({"name": "EDM", "sigma": 1}, "unknown argument of EDM 'sigma', did you mean sigma_min?"),
        ({"name": "EDM", "sigma_max": "large"}, "sde.sigma_max must be a number, got 'large'"),
        (3, "sde must be the name of a SDE or a table with one, got 3"),
    ],
)
def test_choice_that_is_not_there(tree, message):
    with pytest.raises(Mistake) as refused:
        choose("sde", tree, "sde")
    assert message in str(refused.value)


def test_what_a_class_refuses_is_a_mistake():
    with pytest.raises(Mistake, match=r"EDM: .*sigma_m.*-1"):
        make("sde", Choice("EDM", {"sigma_max": -1.0}))
    with pytest.raises(Mistake, match=r"needs 'predictor': pass solver.predictor=..."):
        make("solver", Choice("PredictorCorrector"))
    with pytest.raises(Mistake, match=r"needs 'picture': pass data\.picture"):
        make("data", Choice("picture"), n=10)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("5", int, 5),
        ("5", float, 5.0),
        ("1e-3", float, 1e-3),
        (".5", float, 0.5),
        ("true", bool, True),
        ("False", bool, False),
        ("edm", str, "edm"),
        ("5", str, "5"),
        ("none", float | None, None),
        ("2", float | None, 2.0),
        ("[1, 2]", list, [1, 2]),
    ],
)
def test_text_becomes_what_is_asked_for(text, hint, value):
    got = convert(Text(text), hint, "key")
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (Text("many"), int, "a whole number, got 'many'"),
        (Text("1e3"), int, "a whole number, got 1000.0"),
        (Text("true"), int, "a whole number, got True"),
        (True, float, "a number, got True"),
        (Text("1"), bool, "true or false, got 1"),
        (Text("none"), int, "a whole number, got 'none'"),
        (Text("x"), float | None, "a number or none, got 'x'"),
        (3, str, "text, got 3"),
    ],
)
def test_value_of_another_type(value, hint, wanted):
    with pytest.raises(Mistake, match=f"key must be {wanted}"):
        convert(value, hint, "key")
