"""`sde restore` on the smallest of the shipped networks, and what it says of bad input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde
from sde import inverse
from sde.cli.names import METHODS
from sde.cli.pictures import read
from sde.cli.restore import TASKS, psnr

Cli = Callable[..., tuple[int, str, str]]
EVENT = (1, 8, 8)
FEW = ("model=digits", "n=2", "steps=3", "out=out")
"""Quick: what the answers are worth is the methods' own tests' business."""


@pytest.fixture
def drawn() -> None:
    """A test that looks at pictures."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a small run's time: they are drawn by the test that looks at them alone."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("sde.cli.common.save", lambda _, path, *__: path)
        monkeypatch.setattr("sde.plot.grid", lambda *_, **__: None)
        monkeypatch.setattr("sde.cli.pictures.compare", lambda *_: None)


def digit(path: str = "digit.png", index: int = 5) -> torch.Tensor:
    """A digit in a file, and as it is read back."""
    pixels = sde.data.to_uint8(sde.data.digits().x[index])
    Image.fromarray(pixels[0].numpy()).save(path)
    return sde.data.from_uint8(pixels)[None]


def arrays(folder: str = "out") -> dict[str, np.ndarray]:
    with np.load(Path(folder) / "restored.npz") as file:
        return dict(file)


def ok(cli: Cli, *words: str) -> str:
    status, out, err = cli("restore", *words)
    assert status == 0, err
    return out


def refused(cli: Cli, *words: str) -> str:
    status, _, err = cli("restore", *words)
    assert status == 2
    return err


@pytest.mark.parametrize(
    ("task", "words", "operator"),
    [
        ("inpaint", ("box=2,1,3,5",), inverse.Mask.box(EVENT, 2, 1, 3, 5)),
        ("inpaint", ("hidden=left",), inverse.Mask.halved(EVENT, "left")),
        ("inpaint", (), inverse.Mask.box(EVENT, 2, 2, 4, 4)),
        ("denoise", ("noise=0.5",), inverse.Identity(EVENT)),
        ("super-resolve", ("factor=2",), inverse.Bicubic(EVENT, 2)),
        ("super-resolve", ("factor=2", "pool=true"), inverse.AveragePool(EVENT, 2)),
        ("deblur", ("width=0.7",), inverse.Blur.gaussian(EVENT, 0.7)),
        ("deblur", ("length=3", "angle=45"), inverse.Blur.motion(EVENT, 3, 45)),
    ],
)
def test_each_task_damages_by_its_operator_and_answers(
    cli: Cli, task: str, words: tuple, operator: inverse.LinearOperator
) -> None:
    x0 = digit()
    out = ok(cli, task, "digit.png", "degrade=true", *FEW, *words)
    got = arrays()
    assert got["x"].shape == (2, *EVENT)
    assert np.isfinite(got["x"]).all()
    np.testing.assert_array_equal(got["truth"], x0.numpy())
    if task != "denoise":
        np.testing.assert_allclose(got["y"], operator(x0).numpy(), atol=1e-6)
        np.testing.assert_allclose(got["mean"], got["x"].mean(0), atol=1e-6)
    np.testing.assert_allclose(got["std"], got["x"].std(0), atol=1e-6)
    assert "peak signal to noise" in out


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("degrade", ["true", "false"])
def test_pictures(cli: Cli, degrade: str) -> None:
    digit()
    ok(cli, "inpaint", "digit.png", f"degrade={degrade}", "method=DDRM", *FEW)
    for name, columns in (("samples.png", 2), ("restored.png", 4 if degrade == "true" else 3)):
        with Image.open(Path("out") / name) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape[1] > 60 * columns
        assert pixels.std() > 10


def test_a_damaged_image_is_taken_as_it_is(cli: Cli) -> None:
    x0 = digit()
    small = sde.data.to_uint8(inverse.AveragePool(EVENT, 2)(x0))
    Image.fromarray(small[0, 0].numpy()).save("small.png")
    out = ok(cli, "super-resolve", "small.png", "factor=2", "pool=true", "method=DDRM", *FEW)
    got = arrays()
    assert "truth" not in got
    assert "peak signal" not in out
    np.testing.assert_array_equal(got["y"], sde.data.from_uint8(small).numpy())
    # DDRM keeps what is seen.
    made = inverse.AveragePool(EVENT, 2)(torch.from_numpy(got["x"]))
    np.testing.assert_allclose(made.numpy(), got["y"].repeat(2, 0), atol=0.02)


def test_what_is_hidden_says_nothing(cli: Cli) -> None:
    x0 = digit()
    other = x0.clone()
    other[..., :4] = 1.0
    np.savez("other.npz", x=other.numpy())
    one = ok(cli, "inpaint", "digit.png", "hidden=left", *FEW) and arrays()["x"]
    two = ok(cli, "inpaint", "other.npz", "hidden=left", *FEW) and arrays()["x"]
    np.testing.assert_array_equal(one, two)


def test_a_mask_is_white_where_it_fills(cli: Cli) -> None:
    digit()
    white = np.zeros((8, 8), np.uint8)
    white[:3] = 255
    Image.fromarray(white).save("mask.png")
    ok(cli, "inpaint", "digit.png", "mask=mask.png", "method=Replacement", *FEW)
    y = arrays()["y"][0, 0]
    assert (y[:3] == 0).all()
    assert (y[3:] != 0).all()


def test_an_answer_is_the_same_in_any_batch(cli: Cli) -> None:
    digit()
    words = ("inpaint", "digit.png", "method=DDNM", "solver=Ancestral", "model=digits", "steps=3", "seed=3")
    ok(cli, *words, "n=3", "out=whole")
    ok(cli, *words, "n=3", "batch=2", "out=parts")
    whole, parts = arrays("whole")["x"], arrays("parts")["x"]
    np.testing.assert_allclose(whole, parts, atol=1e-4)
    assert np.abs(whole[0] - whole[1]).max() > 0.01


def test_denoising_is_the_library_s_and_estimates_the_noise(cli: Cli) -> None:
    x0 = digit()
    y = x0 + 0.4 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    np.savez("noisy.npz", x=y.numpy())
    out = ok(cli, "denoise", "noisy.npz", *FEW)
    noise = float(arrays()["noise"])
    assert noise == pytest.approx(0.4, rel=0.3)
    assert f"noise estimated: {noise:.3g}" in out
    mean = inverse.denoise(sde.pretrained("digits"), y, noise)
    np.testing.assert_allclose(arrays()["mean"], mean[0].numpy(), atol=1e-5)
    assert psnr(mean, x0) > psnr(y, x0) + 3


def test_more_steps_restore_what_the_mean_of_the_data_does_not(cli: Cli) -> None:
    x0 = digit()
    ok(
        cli,
        "inpaint",
        "digit.png",
        "degrade=true",
        "share=0.6",
        "model=digits",
        "n=4",
        "steps=20",
        "out=out",
        "label=5",
    )
    got = arrays()
    assert psnr(torch.from_numpy(got["mean"])[None], x0) > psnr(sde.data.digits().x.mean(0, keepdim=True), x0) + 3
    assert got["std"][got["y"][0] == 0].mean() > 2 * got["std"][got["y"][0] != 0].mean()


def test_a_data_set_gives_clean_images(cli: Cli) -> None:
    ok(cli, "inpaint", "data=digits", "index=5", "method=Replacement", *FEW)
    np.testing.assert_array_equal(arrays()["truth"][0], sde.data.digits().x[5].numpy())


def test_the_way_of_flags(cli: Cli) -> None:
    digit()
    ok(cli, "inpaint", "digit.png", "--model", "digits", "--n", "2", "--steps", "2", "--out", "out")
    assert arrays()["x"].shape == (2, *EVENT)


def test_resize_brings_a_photograph_to_the_model(cli: Cli) -> None:
    Image.new("RGB", (30, 20), (250, 20, 20)).save("photo.png")
    assert read(Path("photo.png"), EVENT, resize=True).shape == (1, *EVENT)
    ok(cli, "inpaint", "photo.png", "degrade=true", "resize=true", "method=Replacement", *FEW)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(cli: Cli, name: str) -> None:
    digit()
    extra = ("method.jump=2", "method.resamplings=2") if name == "RePaint" else ()
    words = ("inpaint", "digit.png", "degrade=true", "noise=0.1", "hidden=top", f"method={name}", *FEW)
    if name == "RePaint":
        words = tuple(w for w in words if w != "noise=0.1")
    ok(cli, *words, *extra)


def test_every_method_of_the_room_has_a_name() -> None:
    kinds = (sde.score.Model, sde.Solver)
    there = {k for k in inverse.__all__ if isinstance(c := getattr(inverse, k), type) and issubclass(c, kinds)}
    assert set(METHODS) == there - {"TDS"}  # its particles are no answers apart


MISTAKES = {
    ("inpant", "digit.png"): "unknown task 'inpant', did you mean inpaint?",
    (): "which task? inpaint: box=",
    ("inpaint",): "which image? Pass a file",
    ("inpaint", "none.png"): "no image none.png",
    ("inpaint", "colour.png"): "mode RGB, and must be grey (mode L): pass resize=true",
    ("inpaint", "large.png"): "has 9 x 8 pixels, and must have 8 x 8: pass resize=true to fit it, or another model",
    ("super-resolve", "digit.png", "factor=2"): "has 8 x 8 pixels, and must have 4 x 4",
    ("super-resolve", "digit.png", "factor=3"): "factor must divide height 8 and width 8, got 3: use one of [2, 4, 8]",
    ("inpaint", "digit.png", "box=1,2"): "box must be top,left,height,width",
    ("inpaint", "digit.png", "box=6,0,4,4"): "must lie in the picture of 8 x 8",
    ("inpaint", "digit.png", "box=1,1,2,2", "share=0.5"): "box and share each say what is hidden",
    ("inpaint", "digit.png", "hidden=middle"): "hidden must be one of top",
    ("inpaint", "digit.png", "noise=-1"): "noise must be 0 or more, got -1",
    ("inpaint", "digit.png", "method=DPS"): "DPS divides by the observation's noise, and noise=0",
    ("inpaint", "digit.png", "method=Pigdm"): "did you mean PiGDM?",
    ("inpaint", "digit.png", "label=10"): "label must be 0 to 9, got 10",
    ("inpaint", "digit.png", "n=0"): "n, batch and steps must be at least 1",
    ("inpaint", "data=digits", "index=99999"): "index must be 0 to 1796",
    ("inpaint", "bad.npz"): "has shape (3, 3), and must have (1, 8, 8)",
    ("inpaint", "range.npz"): "must be bytes or grey levels of about [-1, 1], got up to 200",
    ("inpaint", "text.png"): "text.png is no picture",
    ("denoise", "digit.png", "degrade=true"): "how much noise is degrade=true to add?",
    ("colorize", "digit.png"): "colorize needs a model of colour images",
    ("deblur", "digit.png", "width=-1"): "width must be positive",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_name_the_remedy(cli: Cli, words: tuple[str, ...]) -> None:
    digit()
    Image.new("RGB", (8, 8), (250, 20, 20)).save("colour.png")
    Image.new("L", (9, 8)).save("large.png")
    np.savez("bad.npz", x=np.zeros((3, 3)))
    np.savez("range.npz", x=np.full((8, 8), 200.0))
    Path("text.png").write_text("no picture")
    assert MISTAKES[words] in refused(cli, *words, "model=digits", "steps=2", *(["n=2"] if "n=0" not in words else []))


def test_colorize_by_a_model_of_colours(cli: Cli) -> None:
    torch.manual_seed(0)
    net = sde.nets.UNet(3, size=8, width=8)
    sde.save(sde.ScoreModel(net, sde.EDM(), mean=torch.zeros(3, 8, 8)), "colours.safetensors")
    digit()
    ok(cli, "colorize", "digit.png", "model=colours.safetensors", "n=2", "steps=2", "method=DDRM", "out=out")
    got = arrays()
    np.testing.assert_allclose(inverse.Grey((3, 8, 8))(torch.from_numpy(got["x"])).numpy()[0], got["y"][0], atol=0.02)


def test_every_task_says_what_it_can_be_told(cli: Cli) -> None:
    for task in TASKS:
        assert task in cli("--help")[1].replace("\n", " ") or task in refused(cli)
