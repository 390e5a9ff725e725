"""`sde demo`: everything it promises is there, and, at full size, good."""

import re
from pathlib import Path

import pytest
import torch

import sde
from sde.cli.demo.digits import nearest_share
from sde.cli.demo.moons import density
from sde.cli.demo.page import Figure, Table, write
from sde.metrics import floor, sliced_wasserstein

PICTURES = [
    "1-exact-score.png",
    "2-training.png",
    "3-learned-score.png",
    "4-samples.png",
    "5-paths.png",
    "sde-ode.gif",
    "6-digits-training.png",
    "7-digits.png",
    "8-neighbours.png",
    "9-birth.png",
]


Rows = dict[str, list[float]]


def tables(out: str) -> tuple[Rows, Rows]:
    """The two tables on the screen: a row's name to its numbers."""
    moons, digits = out.split("Handwritten digits")
    return rows(moons), rows(digits)


def rows(out: str) -> Rows:
    lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    numbers = [(cells[0], [c.split()[0] for c in cells[1:]]) for cells in lines if len(cells) > 3 and cells[0]]
    return {name: [float(c) for c in cells] for name, cells in numbers}


def test_density_is_that_of_the_moons(generator):
    target = density()
    n = 5000
    x = sde.data.moons(n, generator=generator).x
    assert torch.allclose(target.mean, torch.zeros(2, dtype=torch.float64), atol=1e-9)
    assert target.scale == pytest.approx(1.0, abs=1e-3)
    gap = sliced_wasserstein(target.sample(n, generator).float(), x, generator=generator)
    level = floor(sliced_wasserstein, sde.data.moons, n, 6, generator)
    assert gap < level.mean + 4 * level.sd
    # entropy: E log p over the data equals that over the target's own draws, to sampling error
    own, data = target.log_prob(target.sample(n, generator)), target.log_prob(x.double())
    assert float(own.mean() - data.mean()) == pytest.approx(0.0, abs=4 * float(own.std()) * (2 / n) ** 0.5)


def test_nearest_share_is_0_for_copies_and_1_for_the_data_themselves():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert nearest_share(x[:2], x) == 0
    assert nearest_share(torch.tensor([[5.0], [-2.0]]), x) == pytest.approx(2.0)


def test_page_refers_to_files_beside_it(tmp_path):
    from PIL import Image

    Image.new("RGB", (30, 20)).save(tmp_path / "a & b.png", dpi=(200, 200))
    table = Table("Distances", ["", "W2"], "Less is <better>.")
    table.add("floor", 0.0213)
    parts = ["Heading", table, Figure("a & b.png", 'It says "1 < 2".')]
    text = write(tmp_path / "index.html", parts, first="a & b.png").read_text(encoding="utf-8")
    assert '<img src="a &amp; b.png" width="15" height="10" alt="It says &quot;1 &lt; 2&quot;."' in text
    assert text.index("<figure>") < text.index("<h2>Heading</h2>") < text.index("<td>0.0213</td>")
    assert "Less is &lt;better&gt;." in text
    assert "http" not in text


def test_smoke_demo_makes_everything(cli, monkeypatch):
    monkeypatch.setenv("SDE_SMOKE", "1")
    before = torch.get_rng_state()
    status, out, _ = cli("demo")
    assert status == 0
    assert torch.equal(before, torch.get_rng_state())
    folder = Path("out/demo")
    assert [name for name in PICTURES if not (folder / name).is_file()] == []
    page = (folder / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert sorted(sources) == sorted(PICTURES)
    assert page.count("<table>") == 2
    assert f"open {folder / 'index.html'}" in out
    moons, digits = tables(out)
    assert [len(row) for row in moons.values()] == [3] * 5
    assert [len(row) for row in digits.values()] == [4] * 4
    assert digits["exact score of the data set, ODE"][3] < digits["floor: two halves of the digits"][3] == 1.0
    for name, dim in (("moons", 2), ("digits", 64)):
        assert sde.load(folder / f"{name}.safetensors").net.dim == dim


def test_smoke_demo_of_images(cli):
    status, out, err = cli("demo", "images", "smoke=true")
    assert status == 0, err
    folder = Path("out/demo/images")
    pictures = {"1-digits.png", "2-digits-birth.png", "3-fashion-mnist.png", "4-fashion-mnist-birth.png"}
    assert {p.name for p in folder.iterdir()} == {*pictures, "index.html"}
    assert all(name in (folder / "index.html").read_text(encoding="utf-8") for name in pictures)
    assert "1,566,737" in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_is_good(cli):
    status, out, _ = cli("demo")
    assert status == 0
    moons, digits = tables(out)
    floor_m, floor_d = moons["floor: two draws of the data"], digits["floor: two halves of the digits"]
    for way in ("predictor–corrector", "probability-flow ODE"):
        for whose in ("exact score", "network"):
            assert all(d < 3 * level for d, level in zip(moons[f"{whose}, {way}"], floor_m, strict=True))
        sliced, exact, energy, nearest = digits[f"network, {way}"]
        assert sliced < 2 * floor_d[0]
        assert exact < 1.3 * floor_d[1]
        assert energy < 2 * floor_d[2]
        assert 0.7 < nearest < 1.5  # neither copies nor noise
    assert Path("out/demo/sde-ode.gif").stat().st_size < 1.5e6
