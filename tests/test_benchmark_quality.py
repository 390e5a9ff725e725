"""Time to quality: the clock, the resumable run, its page; a checkpoint in pieces."""

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sde

pytestmark = pytest.mark.filterwarnings("ignore")  # peers warn of their own old habits

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import (  # noqa: E402
    gpu_nets,
    parcel,
    quality,
    quality_model,
    quality_report,
    quality_train,
)
from sde.train.checkpoint import read  # noqa: E402

PLAN = replace(quality_train.TINY, samples=8, widths=(0.1, 0.2), evaluations=(2, 3))


def rows(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]


def test_the_clock_starts_late_and_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = quality_train.Clock(torch.device("cpu"))
    for _ in range(quality_train.UNCOUNTED):
        assert clock.seconds == 0
        now[0] += 50.0  # they compile
        clock.tick()
    now[0] += 2.0
    clock.tick()
    assert clock.seconds == 2.0
    with clock.resting() as seconds:
        assert seconds == 2.0
        now[0] += 30.0
    now[0] += 1.0
    assert clock.seconds == 3.0


def test_the_rate_rises_and_falls_in_seconds() -> None:
    plan = quality_train.Plan()
    assert plan.rate(0) == pytest.approx(0.01)
    assert plan.rate(4.9) == pytest.approx(0.5 * (1 - 4.9 / 330))
    assert plan.rate(165) == 0.5
    assert plan.rate(330) == plan.rate(331) == 0


def test_an_index_spans_what_the_sde_has() -> None:
    class Index(torch.nn.Module):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return c

    forward = sde.EDM()
    net = quality.Indexed(Index(), forward)
    c = forward.clock(torch.tensor([forward.t_min, math.sqrt(forward.t_min * forward.t_max), forward.t_max]))
    torch.testing.assert_close(net(torch.zeros(3), c), torch.tensor([0.0, 499.5, 999.0]).double(), atol=1e-2, rtol=0)


def test_a_run_in_two_calls_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = gpu_nets.ours(sde.nets.UNet.cifar10, multipliers=(1, 1), blocks=1, attention=())
    monkeypatch.setitem(gpu_nets.NETWORKS, "unet", lambda tiny: small(True))
    monkeypatch.setitem(gpu_nets.NETWORKS, "diffusers-unet", gpu_nets.NETWORKS["unet"])
    calls = []
    monkeypatch.setattr(quality, "train", lambda *a: calls.append(a[-1]) or quality_train.train(*a))
    whole = quality.jobs
    monkeypatch.setattr(quality, "jobs", lambda *a: (job for i, job in enumerate(whole(*a)) if i < 3))
    (first,) = quality.measure(PLAN, tmp_path, only=["unet"])
    assert len(first["found"]) == 3
    assert [row["mark"] for row in first["marks"]] == list(PLAN.marks)
    assert all(row["mark"] <= row["seconds"] < row["mark"] + 1 for row in first["marks"])
    quality_report.picture([first], tmp_path / "half.png")
    assert (tmp_path / "unet.png").exists()
    assert "nothing to compare" in quality_report.report([first])
    monkeypatch.setattr(quality, "jobs", whole)
    (second,) = quality.measure(PLAN, tmp_path, only=["unet"])
    assert calls == ["unet"]  # not trained again
    assert {k: second["found"][k] for k in first["found"]} == first["found"]
    n = len(PLAN.marks)
    assert len(second["found"]) == n * 3 + n * 2 + n
    theirs = {**json.loads(json.dumps(second)), "network": "diffusers-unet"}
    for key, value in theirs["found"].items():
        if key.startswith("frechet"):
            theirs["found"][key] = 2 * value
        if key.startswith("bits"):
            value["value"] += 0.25
    (tmp_path / "diffusers-unet.json").write_text(json.dumps(theirs))
    books = quality.measure(PLAN, tmp_path, minutes=0)
    page = quality_report.report(books)
    ahead = [row for row in rows(page) if len(row) == 4 and row[0] in ("0.1", "0.2")]
    assert [row[1:] for row in ahead] == [["2.00", "2.00", "+0.250"]] * n
    assert len([row for row in rows(page) if row[1:2] in (["unet"], ["diffusers-unet"])]) == 2 * n
    quality_report.picture(books, tmp_path / "q.png")
    assert (tmp_path / "q.png").stat().st_size > 10_000


def test_a_training_is_not_begun_that_would_end_too_late(tmp_path: Path) -> None:
    plan = replace(PLAN, marks=(500.0,))
    assert quality.measure(plan, tmp_path, only=["unet"], minutes=0.5) == []


def test_judged_as_it_is_measured_elsewhere() -> None:
    """A perfect denoiser of nothing: errors and bits of a model that returns its input are known."""

    class Zero(torch.nn.Module):
        classes = 0

        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return self.w * x

    seen = quality.data(PLAN, torch.device("cpu"))
    model = sde.ScoreModel(Zero(), sde.EDM(), "edm", seen.mean, seen.scale)
    judge = quality.Judge(model.net, model, PLAN, seen, bits_compiled=False)
    s2 = seen.scale**2
    power = float(sde.data.from_uint8(seen.test).square().mean())
    for sigma, error in zip(quality.SIGMAS, judge.denoising(), strict=True):
        shrink = s2 / (s2 + sigma**2)
        assert error == pytest.approx((1 - shrink) ** 2 * power + shrink**2 * sigma**2, rel=0.03)
    # The flow of such a model carries N(mean, scale² + sigma²): the cost of bytes under a Gaussian.
    bits = judge.bits(8)["value"]
    nats = 0.5 * math.log(2 * math.pi * s2) + float(sde.data.from_uint8(seen.test[:8]).square().mean()) / (2 * s2)
    assert bits == pytest.approx(nats / math.log(2) + math.log2(127.5), abs=0.05)


def test_the_network_of_a_file(tmp_path: Path) -> None:
    net = sde.nets.UNet(width=16, multipliers=(1, 1), blocks=1, classes=10)
    file = sde.save(sde.ScoreModel(net, sde.EDM(), scale=0.58), tmp_path / "some.safetensors")
    found = quality_model.measure(file, PLAN, tmp_path / "q", evaluations=(2, 3), samples=20)
    assert [(r["told"], r["evaluations"]) for r in found["frechet"]] == [(True, 2), (True, 3), (False, 2), (False, 3)]
    assert [r["told"] for r in found["bits"]] == [False, True]
    assert [len(row) for row in rows(quality_model.report(found))] == [5] * 8
    assert (tmp_path / "q" / "some.png").exists()
    with pytest.raises(ValueError, match="other images than CIFAR-10's"):
        quality_model.measure(sde.train.shipped()["digits"], PLAN, tmp_path)


def test_the_recipe_makes_a_network_that_may_be_shipped() -> None:
    import tomllib

    recipe = Path(sde.__file__).parent / "cli" / "recipes" / "cifar10.toml"
    made = tomllib.loads(recipe.read_text())
    shape = {k: v for k, v in made["model"].items() if k != "name"}
    with torch.device("meta"):
        net, named = sde.nets.UNet(**shape, classes=10), sde.nets.UNet.cifar10_small(classes=10)
    assert 2 * sum(p.numel() for p in net.parameters()) < 9.6e6
    assert sde.train.describe(net) == sde.train.describe(named)


# Pieces.


def run(path: Path, steps: int) -> sde.ScoreModel:
    torch.manual_seed(0)
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=32), sde.EDM())

    def stop(step: sde.train.Step) -> None:
        if step.step == steps:
            raise KeyboardInterrupt

    generator = torch.Generator().manual_seed(2)
    told = {"batch": 16, "every": 10, "ema": 0.9, "generator": generator, "progress": False, "callback": stop}
    if steps < 60:
        with pytest.raises(KeyboardInterrupt):
            sde.fit(model, data, 60, checkpoint=path, **told)
    else:
        sde.fit(model, data, 60, checkpoint=path, **{**told, "callback": None})
    return model


def weights(model: sde.ScoreModel) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("lean", [False, True])
def test_a_run_that_travels_in_pieces_goes_on(tmp_path: Path, lean: bool) -> None:
    whole = weights(run(tmp_path / "whole", 60))
    file = tmp_path / "part"
    run(file, 30)
    paths = parcel.pack(file, tmp_path / "pieces", mebibytes=0.01, lean=lean)
    assert len(paths) > 3
    assert all(p.stat().st_size <= 0.01 * 2**20 for p in paths[:-1])
    size = sum(p.stat().st_size for p in paths[:-1])
    assert size < 0.75 * file.stat().st_size if lean else size == file.stat().st_size
    back = parcel.unpack(tmp_path / "pieces", tmp_path / "there" / "part")
    before, after = read(file)[1], read(back)[1]
    assert {k: v.dtype for k, v in before.items()} == {k: v.dtype for k, v in after.items()}
    for name, value in before.items():
        if lean and name.endswith("/exp_avg"):
            assert not after[name].any()
        elif lean and name.endswith("/exp_avg_sq"):
            assert torch.equal(after[name], value.to(torch.bfloat16).float())
        else:
            assert torch.equal(after[name], value)
    on = weights(run(back, 60))
    if lean:
        assert 0 < float((on - whole).norm() / whole.norm()) < 0.02
    else:
        assert torch.equal(on, whole)


def test_a_piece_that_was_altered_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "part", 30)
    paths = parcel.pack(tmp_path / "part", tmp_path / "pieces", mebibytes=0.01)
    data = bytearray(paths[1].read_bytes())
    data[5] ^= 1
    paths[1].write_bytes(bytes(data))
    with pytest.raises(ValueError, match="was altered: fetch it again"):
        parcel.unpack(tmp_path / "pieces", tmp_path / "back")
