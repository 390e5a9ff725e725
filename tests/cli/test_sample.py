"""`sde sample` and `sde plot` on small models of every kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sde


def saved(path: str, dim: int = 2, forward=None, classes: int = 0, mean=None, coupled: bool = False) -> str:
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=dim, width=8, depth=1, classes=classes)
    torch.nn.init.normal_(net.outward.weight, std=0.1)
    mean = torch.zeros(dim) if mean is None else mean
    sde.save(sde.ScoreModel(net, forward or sde.VP(), mean=mean, coupled=coupled), path)
    return path


def is_png(path: str) -> bool:
    return Path(path).read_bytes().startswith(b"\x89PNG")


def test_samples_are_those_of_the_library(cli):
    path = saved_in(cli)
    words = ["n=7", "solver=DDIM", "steps=5", "eta=0.5", "seed=3", "out=x.npz", "grid=karras", "grid.rho=5"]
    assert cli("sample", path, *words)[0] == 0
    model, rng = sde.load(path), [torch.Generator().manual_seed(3 * 1_000_003 + i) for i in range(7)]
    noise = model.prior(torch.empty(7, 2), rng)
    times = sde.grids.karras(model.sde, 5, rho=5.0)
    x = sde.sample(model, x=noise, times=times, solver=sde.DDIM(), eta=0.5, generator=rng)
    np.testing.assert_array_equal(np.load("x.npz")["x"], x.numpy())
    assert is_png("x.png")


def saved_in(cli, **kwargs) -> str:
    return saved("model.safetensors", **kwargs)


def test_batches_add_up(cli):
    path = saved_in(cli)
    assert cli("sample", path, "n=7", "batch=3", "steps=2", "out=x.safetensors")[0] == 0
    x = load_file("x.safetensors")["x"]
    assert x.shape == (7, 2)
    assert len(x.unique(dim=0)) == 7


def test_a_sample_is_the_same_in_any_batch_and_any_number_of_processes(cli, monkeypatch):
    path, words = saved_in(cli, classes=3), ["n=7", "steps=3", "solver=Ancestral", "seed=2"]
    assert cli("sample", path, *words, "out=whole.safetensors")[0] == 0
    assert cli("sample", path, *words, "batch=2", "out=parts.safetensors")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # the first process waits for what the others have drawn
        monkeypatch.setenv("RANK", rank)
        assert cli("sample", path, *words, "batch=2", "out=shared.safetensors")[0] == 0
        assert Path("shared.safetensors").exists() == (rank == "0")
    whole, *others = (load_file(f"{name}.safetensors")["x"] for name in ("whole", "parts", "shared"))
    assert len(whole.unique(dim=0)) == 7
    for other in others:
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-6)
    assert not list(Path().glob("*.parts"))


def test_a_draw_that_was_stopped_goes_on(cli, monkeypatch):
    path, words = saved_in(cli), ["n=6", "batch=2", "steps=2", "out=x.safetensors"]
    assert cli("sample", path, *words)[0] == 0
    whole, real, drawn = load_file("x.safetensors")["x"], sde.sample, []
    Path("x.safetensors").unlink()

    def stopping(*args, **kwargs):
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(sde, "sample", stopping)
    status, out, _ = cli("sample", path, *words)
    assert status == 130
    assert "stopped with 4 of 6 samples: the same command goes on from x.safetensors.parts" in out
    status, _, err = cli("sample", path, "n=6", "batch=2", "steps=4", "out=x.safetensors")
    assert status == 2
    assert "another draw (steps was 2, now 4): pass another out=, or resume=false" in err
    assert cli("sample", path, *words)[0] == 0
    assert len(drawn) == 4  # two, the one that was stopped, and the one that was missing
    torch.testing.assert_close(load_file("x.safetensors")["x"], whole)


def test_beginning_anew_is_for_one_process(cli, monkeypatch):
    path = saved_in(cli)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    status, _, err = cli("sample", path, "n=2", "steps=2", "out=x.npz", "resume=false")
    assert status == 2
    assert "resume=false is for one process: remove x.npz.parts" in err


def test_another_model_of_the_same_name_is_another_draw(cli, monkeypatch):
    path, words = saved_in(cli), ["n=4", "batch=2", "steps=2", "out=x.npz"]

    def stopping(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(sde, "sample", stopping)
        assert cli("sample", path, *words)[0] == 130
    assert cli("sample", saved_in(cli, forward=sde.EDM()), *words)[0] == 2
    assert cli("sample", path, *words, "resume=false")[0] == 0


def test_a_folder_of_images(cli):
    from PIL import Image

    path = saved_in(cli, dim=3 * 64, mean=torch.zeros(3, 8, 8))
    words = ["n=5", "steps=2", "batch=2"]
    assert cli("sample", path, *words, "out=x.npz")[0] == 0
    assert cli("sample", path, *words, "out=images")[0] == 0
    assert sorted(p.name for p in Path("images").iterdir()) == [f"{i:05d}.png" for i in range(5)]
    x = np.load("x.npz")["x"]
    for i in range(5):
        pixels = np.asarray(Image.open(f"images/{i:05d}.png"))
        np.testing.assert_array_equal(pixels, sde.data.to_uint8(torch.tensor(x[i])).permute(1, 2, 0).numpy())
    assert is_png("images-grid.png")
    status, _, err = cli("sample", saved_in(cli), "n=2", "out=images")
    assert status == 2
    assert "out=images is a folder, which is for images" in err


def test_half_precision_of_the_network_alone(cli):
    path = saved_in(cli)
    for name in ("float32", "bfloat16"):
        assert cli("sample", path, "n=50", "steps=4", f"precision={name}", f"out={name}.npz")[0] == 0
    one, two = (np.load(f"{name}.npz")["x"] for name in ("float32", "bfloat16"))
    assert two.dtype == np.float32
    assert 0 < np.abs(one - two).max() < 0.05
    status, _, err = cli("sample", path, "precision=bfloat", "out=x.npz")
    assert status == 2
    assert "did you mean bfloat16?" in err


def test_images_and_classes(cli):
    path = saved_in(cli, dim=64, classes=3, mean=torch.zeros(1, 8, 8))
    assert cli("sample", path, "n=4", "steps=2", "out=each.npz")[0] == 0
    assert np.load("each.npz")["x"].shape == (4, 1, 8, 8)
    assert is_png("each.png")
    assert cli("sample", path, "n=4", "steps=2", "label=1", "out=one.npz")[0] == 0
    each, one = np.load("each.npz")["x"], np.load("one.npz")["x"]
    np.testing.assert_array_equal(each[1], one[1])  # the second in turn is of class 1
    assert not np.array_equal(each[0], one[0])


def test_state_of_a_matrix_sde_gives_positions(cli):
    path = saved_in(cli, forward=sde.CLD())
    assert cli("sample", path, "n=4", "steps=2", "out=x.npz")[0] == 0
    assert np.load("x.npz")["x"].shape == (4, 2)


def test_picture_alone(cli):
    path = saved_in(cli)
    assert cli("sample", path, "n=4", "steps=2", "out=new/x.png")[0] == 0
    assert is_png("new/x.png")
    assert not Path("new/x.npz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["solver=DIM"], "unknown solver 'DIM', did you mean DDIM?"),
        (["n=0"], "n and batch must be at least 1, got n=0"),
        (["label=1"], "label=1: this model knows no classes"),
        (["steps=0"], "steps must be"),
        (["out=x.jpg"], "unknown file format '.jpg'"),
        (["solver=Adams", "eta=1"], "eta"),
        (["device=abacus"], "device 'abacus'"),
    ],
)
def test_what_cannot_be_drawn(cli, words, message):
    status, _, err = cli("sample", saved_in(cli), *words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_altered_checkpoint_is_refused(cli):
    path = Path(saved_in(cli))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    status, _, err = cli("sample", str(path))
    assert (status, "altered" in err) == (2, True)


POINTS = {"score", "snapshots", "paths", "samples"}


@pytest.mark.parametrize(
    ("kwargs", "pictures"),
    [
        ({}, POINTS),
        ({"forward": sde.EDM()}, POINTS),
        ({"forward": sde.Flow(), "coupled": True}, POINTS - {"score"}),
        ({"forward": sde.CLD()}, POINTS - {"score"}),
        ({"classes": 2}, POINTS - {"score"}),
        ({"dim": 1}, {"paths"}),
        ({"dim": 64, "mean": torch.zeros(1, 8, 8)}, {"paths", "samples"}),
    ],
    ids=["VP", "EDM", "coupled", "matrix", "classes", "line", "images"],
)
def test_plot_draws_what_a_model_has(cli, kwargs, pictures):
    path = saved_in(cli, **kwargs)
    status, out, _ = cli("plot", path, "n=20", "steps=4", "out=figures")
    assert status == 0
    assert {p.stem.removeprefix("model-") for p in Path("figures").iterdir()} == pictures
    assert all(is_png(p) for p in Path("figures").iterdir())
    assert out.count("wrote") == len(pictures)


def test_plot_of_a_training_run_has_its_history_and_a_movie(cli, small):
    assert cli("train", "moons", *small, "out=run")[0] == 0
    assert cli("plot", "run/model.safetensors", "what=history")[0] == 0
    assert is_png("run/model-history.png")
    assert cli("plot", "run/model.safetensors", "what=movie", "n=10", "steps=3")[0] == 0
    assert Path("run/model-movie.gif").read_bytes().startswith(b"GIF")


def test_plot_of_samples(cli):
    path = saved_in(cli)
    for out in ("x.npz", "y.safetensors"):
        assert cli("sample", path, "n=10", "steps=2", f"out={out}")[0] == 0
        assert cli("plot", out)[0] == 0
        assert is_png(f"{Path(out).stem}-samples.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["what=scores"], "unknown picture of model.safetensors 'scores', did you mean score?"),
        (["n=0"], "n must be at least 1, got 0"),
        (["steps=0"], "steps must be"),
    ],
)
def test_what_cannot_be_plotted(cli, words, message):
    status, _, err = cli("plot", saved_in(cli), *words)
    assert status == 2
    assert message in err


def test_file_of_another_kind_is_refused(cli):
    Path("x.png").write_bytes(b"\x89PNG and no more than that")
    status, _, err = cli("plot", "x.png")
    assert status == 2
    assert "x.png holds no samples, and no model" in err
