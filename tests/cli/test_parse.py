"""Recipes, overrides and flags, layer over layer."""

import tomllib
from pathlib import Path

import pytest

from sde.cli.choice import Choice
from sde.cli.config import Demo, Sample, Train
from sde.cli.mistakes import Mistake
from sde.cli.parse import RECIPES, parse, to_toml, to_tree

SHIPPED = sorted(p.stem for p in RECIPES.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_a_configuration_and_says_what_it_is(name):
    stem, config = parse(Train, "train", [name], recipe=True)
    assert stem == name
    assert config != Train()
    assert (RECIPES / f"{name}.toml").read_text(encoding="utf-8").startswith("# ")


def test_layers_in_their_order(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("steps = 1\nbatch = 2\nlr = 3\n[sde]\nname = 'EDM'\nsigma_max = 9\n", encoding="utf-8")
    stem, config = parse(Train, "train", [str(recipe), "batch=20", "lr=30", "--lr", "300"], recipe=True)
    assert (stem, config.steps, config.batch, config.lr, config.seed) == ("mine", 1, 20, 300.0, 0)
    assert config.sde == Choice("EDM", {"sigma_max": 9.0})
    assert config.model == Train().model


@pytest.mark.parametrize("way", [["sde=VE"], ["sde.name=VE"], ["--sde", "VE"]])
def test_another_name_drops_the_arguments_of_the_first(tmp_path, way):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[sde]\nname = 'EDM'\nsigma_max = 9\n", encoding="utf-8")
    assert parse(Train, "train", [str(recipe), *way], recipe=True)[1].sde == Choice("VE")


def test_name_comes_before_its_arguments_whatever_the_order():
    for words in (["sde.sigma_max=7", "sde=EDM"], ["sde.name=EDM", "sde.sigma_max=7"]):
        assert parse(Train, "train", words)[1].sde == Choice("EDM", {"sigma_max": 7.0})


def test_same_name_keeps_what_the_recipe_says():
    config = parse(Train, "train", ["moons", "data=moons", "model.depth=2"], recipe=True)[1]
    assert config.data == Choice("moons", {"n": 20_000})
    assert config.model == Choice("MLP", {"width": 64, "depth": 2})


def test_none_unsets_what_can_be_unset():
    config = parse(Train, "train", ["flow", "coupling=none", "times=none"], recipe=True)[1]
    assert (config.coupling, config.times) == (None, None)
    assert parse(Sample, "sample", ["x", "eta=none", "out=a/b.npz"])[1].out == Path("a/b.npz")


def test_subject_is_the_first_word_only():
    assert parse(Demo, "demo", ["smoke=true"]) == (None, Demo(smoke=True))
    assert parse(Sample, "sample", ["model.safetensors", "n=3", "--seed", "4"]) == (
        "model.safetensors",
        Sample(n=3, seed=4),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["moon"],
            "unknown recipe 'moon', did you mean moons? There are: cifar10, digits-unet, digits, fashion-mnist, flow",
        ),
        (["moons", "stps=5"], "unknown key 'stps', did you mean steps? There are: data, sde"),
        (["moons", "sde.beta=5"], "unknown argument of VP 'beta', did you mean beta_min?"),
        (["moons", "model=MPL"], "unknown network 'MPL', did you mean MLP?"),
        (["moons", "data=moon"], "unknown data set 'moon', did you mean moons?"),
        (["moons", "--sde", "EDMM"], "unknown SDE 'EDMM', did you mean EDM?"),
        (["moons", "steps=many"], "steps must be a whole number, got 'many'"),
        (["moons", "model.width=wide"], "model.width must be a whole number, got 'wide'"),
        (["moons", "steps.more=1"], "steps.more is not there: steps is a single value"),
        (["moons", "model.dim=3"], "unknown argument of MLP 'dim'"),
    ],
)
def test_mistakes_list_what_exists(words, message):
    with pytest.raises(Mistake) as refused:
        parse(Train, "train", words, recipe=True)
    assert message in str(refused.value)


def test_recipe_that_is_no_toml(tmp_path):
    (tmp_path / "bad.toml").write_text("steps = = 5", encoding="utf-8")
    with pytest.raises(Mistake, match=r"bad.toml is no TOML: .*line 1"):
        parse(Train, "train", [str(tmp_path / "bad.toml")], recipe=True)


@pytest.mark.parametrize(
    "words", [["moons"], ["flow", "sde.t_min=1e-4", "weight=min_snr", "weight.gamma=3", "out=a b"]]
)
def test_configuration_survives_being_written(tmp_path, words):
    _, config = parse(Train, "train", words, recipe=True)
    again = tmp_path / "again.toml"
    again.write_text(to_toml(to_tree(config)), encoding="utf-8")
    assert parse(Train, "train", [str(again)], recipe=True)[1] == config


def test_nested_solver_survives_being_written():
    words = ["x", "solver=PredictorCorrector", "solver.predictor=DDIM", "solver.corrector.name=Langevin"]
    config = parse(Sample, "sample", [*words, "solver.corrector.snr=0.1"])[1]
    tree = tomllib.loads(to_toml(to_tree(config)))["solver"]
    assert tree == {"name": "PredictorCorrector", "predictor": "DDIM", "corrector": {"name": "Langevin", "snr": 0.1}}
