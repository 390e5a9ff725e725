"""`sde train`: files, resumption, refusals."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import sde
from sde.cli.choice import Choice
from sde.cli.config import Train
from sde.cli.train import build, fit_arguments
from sde.train.checkpoint import read


def weights(path: str) -> dict[str, torch.Tensor]:
    return sde.load(path).state_dict()


def test_run_writes_checkpoint_recipe_and_history(cli, small):
    status, out, _ = cli("train", "moons", *small)
    assert status == 0
    folder = Path("out/train/moons")
    assert f"sde sample {folder / 'model.safetensors'}" in out
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    model = sde.load(folder / "model.safetensors")
    assert isinstance(model.sde, sde.VP)
    assert model.net.width == 8
    assert read(folder / "model.safetensors")[0]["run"]["history"]["step"] == [2, 4, 6]
    recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    assert (recipe["steps"], recipe["model"]) == (6, {"name": "MLP", "width": 8, "depth": 1})


def test_seed_decides_the_weights_and_the_global_state_is_left_alone(cli, small):
    for seed, out in ((0, "a"), (0, "b"), (1, "c")):
        torch.manual_seed(len(out) + seed)
        before = torch.get_rng_state()
        assert cli("train", "moons", *small, f"seed={seed}", f"out={out}")[0] == 0
        assert torch.equal(before, torch.get_rng_state())
    a, b, c = (weights(f"{run}/model.safetensors") for run in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["net.inward.weight"], c["net.inward.weight"])


def test_interrupted_run_goes_on_to_the_same_bits(cli, small, monkeypatch):
    assert cli("train", "moons", *small, "out=whole")[0] == 0
    fit = sde.fit

    def interrupted(*args, **kwargs):
        def stop(now):
            if now.step == 4:
                raise KeyboardInterrupt

        return fit(*args, **kwargs | {"callback": stop})

    monkeypatch.setattr(sde, "fit", interrupted)
    status, out, _ = cli("train", "moons", *small, "out=halves")
    assert status == 130
    again = out.split("Go on with:")[1].split("\n")[0].split()
    assert read("halves/model.safetensors")[0]["run"]["step"] == 4
    monkeypatch.setattr(sde, "fit", fit)
    assert again[0] == "sde"
    assert cli(*again[1:])[0] == 0
    whole, halves = weights("whole/model.safetensors"), weights("halves/model.safetensors")
    assert all(torch.equal(whole[k], halves[k]) for k in whole)


def test_finished_run_is_not_trained_again(cli, small):
    cli("train", "moons", *small)
    before = weights("out/train/moons/model.safetensors")
    assert cli("train", "moons", *small)[0] == 0
    after = weights("out/train/moons/model.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_other_configuration_in_the_same_folder_is_refused(cli, small):
    cli("train", "moons", *small)
    status, _, err = cli("train", "moons", *small, "lr=1e-4")
    assert status == 2
    assert "holds another run (lr was 0.005, now 0.0001): pass out=FOLDER for a new one, or resume=false" in err
    assert cli("train", "moons", *small, "lr=1e-4", "resume=false")[0] == 0


def test_configuration_reaches_the_objects():
    config = Train(
        data=Choice("circles", {"n": 40, "noise": 0.2}),
        sde=Choice("EDM", {"sigma_max": 10.0}),
        model=Choice("MLP", {"width": 8}),
        param="eps",
        conditional=True,
        weight=Choice("min_snr", {"gamma": 2.0}),
        times=Choice("LogNormal", {"std": 1.1}),
        coupling=Choice("optimal_transport"),
    )
    model, x, cond = build(config)
    assert (model.sde, model.param, model.net.width, model.net.classes) == (sde.EDM(sigma_max=10.0), "eps", 8, 2)
    assert x.shape == (40, 2)
    torch.testing.assert_close(model.mean, x.mean(0))
    assert model.scale == pytest.approx(float((x - x.mean(0)).square().mean().sqrt()))
    assert set(cond["label"].tolist()) == {0, 1}
    told = fit_arguments(config)
    assert told["times"] == sde.train.LogNormal(std=1.1)
    assert told["coupling"] is sde.train.optimal_transport
    at = model.levels(torch.tensor([0.01, 10.0]))
    torch.testing.assert_close(told["weight"](at, 1.0), sde.train.min_snr(2.0)(at, 1.0))


def test_table_gets_time_features_for_an_index():
    config = Train(data=Choice("moons", {"n": 10}), sde=Choice("Tabulated.linear"))
    assert build(config)[0].net.time == "sinusoidal"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["conditional=true", "data=swiss_roll"], "conditional=true, but swiss_roll has no classes"),
        (["param=epsilon"], "param must be one of"),
        (["sde=CLD", "param=score"], "not defined for the matrix SDE CLD"),
        (["steps=0"], "steps must be at least 1, got 0"),
        (["data.n=0"], "n must be"),
        (["data=picture", "data.picture=none.png"], "none.png"),
    ],
)
def test_what_cannot_be_trained(cli, small, words, message):
    status, _, err = cli("train", "moons", *(w for w in small if w != "data.n=50" or "swiss" not in str(words)), *words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


UNET = ("model=UNet", "model.width=8", "model.multipliers=[1,2]", "model.blocks=1", "model.features=8")


def test_images_by_a_u_net_with_everything_that_can_be_said(cli):
    words = ["steps=4", "batch=8", "every=2", "conditional=true", "drop=0.2", "flip=true", "clip=1", "accumulate=2"]
    words += ["precision=bfloat16", "decay=linear", "samples_every=4", "save_every=4", "dequantize=15.9", "sde=EDM"]
    words += UNET
    status, _, err = cli("train", "digits", "model.name=UNet", *words)
    assert status == 0, err
    folder = Path("out/train/digits")
    model = sde.load(folder / "model.safetensors")
    assert (model.net.channels, model.net.size, model.net.classes) == (1, 8, 10)
    assert model.mean.shape == (1, 8, 8)
    assert [p.name for p in (folder / "samples").iterdir()] == ["step-0000004.png"]
    assert cli("sample", str(folder / "model.safetensors"), "n=3", "steps=2", "out=images")[0] == 0
    assert len(list(Path("images").iterdir())) == 3


def test_samples_on_the_way_come_with_entries_of_the_history(cli, small):
    status, _, err = cli("train", "moons", *small, "samples_every=3")
    assert status == 2
    assert "samples_every=3 must be a multiple of every=2" in err


@pytest.mark.slow
def test_two_processes_train_as_one(cli, small):
    pytest.importorskip("accelerate")
    words = ["-m", "sde", "train", "moons", *small]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    done = subprocess.run([*command, *words, "out=two"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 6 steps") == 1
    assert cli("train", "moons", *small, "out=one")[0] == 0
    one, two = weights("one/model.safetensors"), weights("two/model.safetensors")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
