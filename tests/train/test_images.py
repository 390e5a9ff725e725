"""Images: bytes, flips, hidden labels, lower precision, batches in parts, clipping, compiling, memory layout."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde


class Conv(nn.Module):
    """A small convolutional network with classes."""

    def __init__(self, channels: int = 2, width: int = 8, classes: int = 0) -> None:
        super().__init__()
        self.channels, self.width, self.classes = channels, width, classes
        self.inward, self.outward = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.inward(x) + c.to(x.dtype)[:, None, None, None]
        if self.label is not None and label is not None:
            h = h + self.label(label)[:, :, None, None]
        return self.outward(torch.tanh(h))


class Watching(Conv):
    """Keeps what it is shown."""

    seen: list[tuple[Tensor, Tensor | None]]

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        self.seen.append((x.detach().clone(), label))
        return super().forward(x, c, label)


@pytest.fixture
def photos(seeded: Callable) -> Tensor:
    """Fifty images of 2 x 4 x 6 bytes, brighter to the right."""
    ramp = torch.linspace(0, 100, 6)
    return (ramp + 155 * torch.rand(50, 2, 4, 6, generator=seeded(3))).to(torch.uint8)


@pytest.fixture
def model(photos: Tensor) -> Callable[..., sde.ScoreModel]:
    """A model of the photos, the same at every call."""
    x = sde.data.from_uint8(photos)

    def make(net: type[nn.Module] = Conv, mean: Tensor | None = None, **kwargs: Any) -> sde.ScoreModel:
        torch.manual_seed(0)
        mean = x.mean((0, 2, 3))[:, None, None] if mean is None else mean
        return sde.ScoreModel(net(**kwargs), sde.VP(), mean=mean, scale=float(x.std()))

    return make


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def trained(model: sde.ScoreModel, data: Tensor, seed: int = 1, steps: int = 5, **kwargs: Any) -> Tensor:
    """Weights that a few steps leave."""
    call = {"batch": 8, "lr": 1e-2, "warmup": 0, "progress": False, **kwargs}
    sde.fit(model, data, steps, generator=torch.Generator().manual_seed(seed), **call)
    return weights(model)


def shown(model: sde.ScoreModel, data: Tensor, steps: int = 1, **kwargs: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Data (centred) and labels as the loss gets them, by a coupling that takes the noise away."""
    model.net.seen = []
    seen: list[Tensor] = []
    watch = lambda z, eps: seen.append(z.clone()) or eps  # noqa: E731
    generator = torch.Generator().manual_seed(7)
    list(sde.fit_steps(model, data, steps, coupling=watch, generator=generator, **kwargs))
    return torch.cat(seen), [label for _, label in model.net.seen]


# Bytes.


def test_bytes_train_as_their_floats(photos: Tensor, model: Callable) -> None:
    floats = trained(model(), sde.data.from_uint8(photos))
    assert torch.allclose(trained(model(), photos), floats, atol=1e-5)
    assert not torch.allclose(trained(model(), photos, seed=2), floats, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bytes_go_in_the_networks_dtype(dtype: torch.dtype, photos: Tensor, model: Callable) -> None:
    z, _ = shown(model(Watching).to(dtype), photos, batch=16)
    assert z.dtype == dtype
    images = sde.data.from_uint8(photos).double()
    centred = images - images.mean((0, 2, 3))[:, None, None]
    nearest = (z.double()[:, None] - centred).abs().amax((2, 3, 4)).min(1).values
    assert float(nearest.max()) < (1e-6 if dtype == torch.float64 else 0.012)  # of a mean and a difference of 8 bits


def test_bytes_stay_bytes(photos: Tensor, model: Callable) -> None:
    step = next(iter(sde.fit_steps(model(), photos, 1, batch=4)))
    assert step.run.draws.data.dtype == torch.uint8
    assert step.run.draws.data.data_ptr() == photos.data_ptr()  # not a copy either


# Flips.


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_half_of_the_images_are_flipped_before_the_mean_is_taken_off(
    kind: str, photos: Tensor, model: Callable
) -> None:
    """With the mean of one image, which is no mirror image of itself."""
    images = sde.data.from_uint8(photos)
    mean = images.mean(0)
    data = photos if kind == "bytes" else images
    z, _ = shown(model(Watching, mean=mean), data, steps=40, batch=16, flip=True)
    x = z + mean
    plain = (x[:, None] - images).abs().amax((2, 3, 4)).min(1).values < 1e-5
    turned = (x[:, None] - images.flip(-1)).abs().amax((2, 3, 4)).min(1).values < 1e-5
    assert bool((plain ^ turned).all())
    assert abs(float(turned.float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(640)


def test_without_flips_none_is_flipped(photos: Tensor, model: Callable) -> None:
    images = sde.data.from_uint8(photos)
    z, _ = shown(model(Watching, mean=images.mean(0)), photos, steps=3, batch=16)
    x = z + images.mean(0)
    assert bool(((x[:, None] - images).abs().amax((2, 3, 4)).min(1).values < 1e-5).all())


@pytest.mark.parametrize("cell", [1.0, 255 / 16])
def test_a_byte_is_spread_over_its_cell_and_no_further(cell: float, photos: Tensor, model: Callable) -> None:
    one = photos[:1]  # all draws are of one image, told apart by the noise alone
    net = model(Watching, mean=torch.zeros(2, 1, 1))
    z, _ = shown(net, one, steps=40, batch=16, dequantize=cell)
    off = (z + 1) * 127.5 - one
    assert float(off.abs().max()) <= 0.5001 * cell
    n = off.numel()
    assert abs(float(off.mean())) < 4 * cell / math.sqrt(12 * n)
    assert abs(float(off.square().mean()) - cell**2 / 12) < 4 * cell**2 / math.sqrt(180 * n)
    pairs = (off[1:] * off[:-1]).mean() / (cell**2 / 12)  # each draw has a noise of its own
    assert abs(float(pairs)) < 4 / math.sqrt(n)


def test_dequantised_noise_is_apart_from_what_else_is_drawn(photos: Tensor, model: Callable) -> None:
    """The first batch holds the same images, mirrored alike."""
    z = [shown(model(Watching), photos, steps=1, batch=16, flip=True, dequantize=cell)[0] for cell in (0.0, 1.0)]
    assert 0 < float((z[0] - z[1]).abs().max()) <= 0.5001 / 127.5


# Labels.


def test_a_share_of_the_labels_is_hidden(photos: Tensor, model: Callable) -> None:
    label = torch.arange(50) % 3
    cond = {"label": label}
    _, shares = shown(model(Watching, classes=3), photos, steps=40, batch=16, cond=cond, drop=0.25)
    told = torch.cat(shares)  # type: ignore[arg-type]
    assert abs(float((told == 3).float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 640)
    _, shares = shown(model(Watching, classes=3), photos, steps=40, batch=16, cond=cond)
    everything = torch.cat(shares)  # type: ignore[arg-type]
    assert int((everything == 3).sum()) == 0
    assert torch.equal(label, torch.arange(50) % 3)  # in the batch alone


def test_labels_that_are_told_stay_with_their_images(photos: Tensor, model: Callable) -> None:
    images, label = sde.data.from_uint8(photos), torch.arange(50)
    mean = images.mean(0)
    net = model(Watching, classes=50, mean=mean)
    z, shares = shown(net, photos, steps=10, batch=16, cond={"label": label}, drop=0.5, flip=True)
    told = torch.cat(shares)  # type: ignore[arg-type]
    x = z + mean
    who = torch.stack([(x[:, None] - i).abs().amax((2, 3, 4)) for i in (images, images.flip(-1))]).amin(0).argmin(1)
    assert bool(((told == who) | (told == 50)).all())
    assert 50 < int((told == 50).sum()) < 110


# Parts.


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_in_parts_makes_the_gradient_of_the_whole(
    parts: int, precision: Any, photos: Tensor, model: Callable, seeded: Callable
) -> None:
    """Coefficients and labels go with their images: the weights after one step of plain descent."""
    after, losses = [], []
    for k in (1, parts):
        m = model(classes=3)
        before, optimizer = weights(m), torch.optim.SGD(m.parameters(), lr=1.0)
        history = sde.fit(
            m, photos, 1, batch=8, lr=1.0, warmup=0, ema=0.0, optimizer=optimizer, accumulate=k, precision=precision,
            cond={"label": torch.arange(50) % 3}, weight=sde.train.min_snr(), generator=seeded(2),
            progress=False,
        )  # fmt: skip
        after.append(weights(m) - before)
        losses.append(history.loss[0])
    size = float(after[0].abs().max())
    assert size > 1e-2
    rounding = 1e-5 if precision == "float32" else 3e-2
    assert float((after[0] - after[1]).abs().max()) < rounding * size
    assert losses[0] == pytest.approx(losses[1], rel=1e-6 if precision == "float32" else 1e-2)


# Clipping.


def test_gradients_are_clipped_to_a_norm(photos: Tensor, model: Callable) -> None:
    for clip, longest in ((None, None), (1e-3, 1e-3), (1e6, None)):
        m = model()
        before = weights(m)
        optimizer = torch.optim.SGD(m.parameters(), lr=1.0)
        trained(m, photos, steps=1, lr=1.0, ema=0.0, optimizer=optimizer, clip=clip)
        moved = weights(m) - before
        if longest is None:
            free = moved
            assert float(moved.norm()) > 0.1
        else:
            assert float(moved.norm()) == pytest.approx(longest, rel=1e-3)
            assert float(nn.functional.cosine_similarity(moved, free, dim=0)) > 0.999


# Precision.


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_keeps_float32_weights(precision: str, photos: Tensor, model: Callable) -> None:
    kinds: list[torch.dtype] = []
    m = model()
    m.net.inward.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    low, full = trained(m, photos, precision=precision, clip=1.0), trained(model(), photos, clip=1.0)
    assert set(kinds) == {getattr(torch, precision)}
    assert {p.dtype for p in m.parameters()} == {torch.float32}
    difference = float((low - full).abs().max())
    assert 1e-7 < difference < 2e-2


def test_float16_scales_its_loss_and_leaves_out_what_overflows(photos: Tensor, model: Callable) -> None:
    """A gradient that overflows changes nothing but the scale; the loss that is told is the plain one."""
    m = model()
    steps = sde.fit_steps(m, photos, 4, batch=8, lr=1e-2, warmup=0, precision="float16", ema=0.0)
    first = next(steps)
    scaler = first.run.scaler
    assert scaler is not None
    assert float(first.loss) < 10
    before, scale = weights(m), scaler.get_scale()
    scaler.update(new_scale=1e38)
    next(steps)
    assert torch.equal(weights(m), before)
    assert scaler.get_scale() == pytest.approx(5e37)
    scaler.update(new_scale=scale)
    next(steps)
    assert not torch.equal(weights(m), before)


# Learning rates.


@pytest.mark.parametrize(
    ("decay", "share"),
    [
        ("constant", lambda n: 1.0),
        ("linear", lambda n: 1 - n / 40),
        ("inverse_sqrt", lambda n: 1.0 if n < 10 else (10 / (n + 1)) ** 0.5),
        (lambda n, steps: 0.5 ** (n / steps), lambda n: 0.5 ** (n / 40)),
    ],
)
def test_decays(decay: Any, share: Callable[[int], float], points: Tensor, small: Callable) -> None:
    rates = [s.lr for s in sde.fit_steps(small(), points, 40, batch=4, lr=0.3, warmup=10, decay=decay)]
    assert rates == pytest.approx([0.3 * min(1, (n + 1) / 10) * share(n) for n in range(40)])


# Memory layout.


def test_channels_last_is_a_layout_alone(photos: Tensor, model: Callable) -> None:
    layouts: list[bool] = []
    m = model()
    m.net.inward.register_forward_hook(
        lambda _, inputs, out: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    last = trained(m, photos, channels_last=True, flip=True)
    assert all(layouts)
    assert m.net.inward.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last, trained(model(), photos, channels_last=False, flip=True), atol=1e-5)


# Compiling.


def test_what_is_compiled_is_the_network_and_what_is_kept_the_plain_one(
    photos: Tensor, model: Callable, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.compile
    asked: list[Any] = []

    def eager(net: nn.Module, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return whole(net, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", eager)
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    m, path = model(classes=3), tmp_path / "model.safetensors"
    label = torch.arange(50) % 3
    made = trained(m, photos, steps=40, cond={"label": label}, compile="max-autotune", checkpoint=path, flip=True)
    assert asked == [{"mode": "max-autotune"}]
    plain = trained(model(classes=3), photos, steps=40, cond={"label": label}, flip=True)
    assert torch.allclose(made, plain, atol=1e-5)
    assert type(m.net) is Conv
    assert torch.equal(weights(sde.load(path, types=[Conv])), made)


def test_a_network_that_is_compiled_already_is_not_saved(photos: Tensor, model: Callable, tmp_path: Any) -> None:
    m = model()
    m.net = torch.compile(m.net, backend="eager")
    with pytest.raises(TypeError, match=r"ScoreModel\.net is wrapped by torch\.compile.*compile=True"):
        sde.fit(m, photos, 1, checkpoint=tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="compile got a compiled network"):
        sde.fit(m, photos, 1, compile=True, progress=False)


# What callbacks see.


def test_the_averaged_model_on_the_way(points: Tensor, small: Callable, bits: Callable) -> None:
    """Inside: what `fit` would leave. Outside: the weights that are trained, untouched. Nothing is copied."""
    m, average = small(), weights(small())
    for n, step in enumerate(sde.fit_steps(m, points, 12, batch=8, ema=0.9, lr=1e-2), start=1):
        raw, places = weights(m), {p.data_ptr() for p in m.parameters()}
        average += (1 - min(0.9, (1 + n) / (10 + n))) * (raw - average)
        with step.averaged() as now:
            assert now is m
            assert not m.training
            assert torch.allclose(weights(m), average, atol=1e-6)
            assert places.isdisjoint(p.data_ptr() for p in m.parameters())
            sde.sample(now, (3, 2), steps=2, progress=False)
        assert m.training
        assert torch.equal(weights(m), raw)
        assert places == {p.data_ptr() for p in m.parameters()}


def test_callbacks_that_look_at_the_average_change_nothing(
    points: Tensor, small: Callable, bits: Callable, seeded: Callable
) -> None:
    seen = []

    def look(step: sde.train.Step) -> None:
        with step.averaged() as now:
            seen.append((step.step, step.history.step[-1], sde.sample(now, (3, 2), steps=2, progress=False).shape))

    a, b = small(), small()
    sde.fit(a, points, 20, every=5, generator=seeded(0), callback=[look, lambda step: None], progress=False)
    sde.fit(b, points, 20, every=5, generator=seeded(0), progress=False)
    assert torch.equal(bits(a), bits(b))
    assert seen == [(n, n, (3, 2)) for n in (5, 10, 15, 20)]


def test_weights_come_back_from_a_callback_that_fails(points: Tensor, small: Callable) -> None:
    m = small()
    steps = sde.fit_steps(m, points, 5, batch=8, lr=1e-1)
    step = next(steps)
    raw = weights(m)

    def fail() -> None:
        with step.averaged():
            assert not torch.equal(weights(m), raw)
            raise RuntimeError("no paper")

    with pytest.raises(RuntimeError, match="no paper"):
        fail()
    assert torch.equal(weights(m), raw)


def test_samples_a_second(points: Tensor, small: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    import time

    history = sde.fit(small(), points, 20, batch=16, every=5, callback=lambda step: time.sleep(0.3))
    assert "samples/s" in capsys.readouterr().err
    assert len(history.throughput) == 4
    assert all(v > 16 * 5 / 0.25 for v in history.throughput)  # the callback's time is not training's
    assert history.seconds[-1] > 0.9


def test_tensorboard(points: Tensor, small: Callable, tmp_path: Any) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = sde.train.tensorboard(tmp_path, images=lambda model: torch.zeros(4, 1, 8, 8), every=2)
    history = sde.fit(small(), points, 20, every=5, callback=log, progress=False)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (n, pytest.approx(v)) for n, v in zip(history.step, history.loss, strict=True)
    ]
    assert [e.value for e in events.Scalars("samples/s")] == pytest.approx(history.throughput)
    assert {e.step for e in events.Images("samples")} == {10, 20}


def test_tensorboard_that_is_not_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install \"sde\[images\]\""):
        sde.train.tensorboard(tmp_path)


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_in_a_step_waits_for_the_gpu(precision: str, compiled: bool, photos: Tensor, model: Callable) -> None:
    """Past the first steps (compiler, allocator), over the edge of a chunk."""
    m = model(classes=3).cuda()
    steps = sde.fit_steps(
        m, photos.cuda(), 100, cond={"label": (torch.arange(50) % 3).cuda()}, batch=8, flip=True, drop=0.1, clip=1.0,
        accumulate=2, precision=precision, compile=compiled, ema=sde.train.Power((0.05, 0.1)),
        generator=torch.Generator("cuda").manual_seed(0),
    )  # fmt: skip
    losses = [next(steps).loss for _ in range(20)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses += [next(steps).loss for _ in range(60)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.stack(losses).isfinite().all())
    assert m.net.inward.weight.is_contiguous(memory_format=torch.channels_last)
