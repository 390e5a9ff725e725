"""The pictures of README and documentation, in docs/_static: about a minute on one core.

    python docs/make_figures.py [FOLDER]

Run it again when what it draws has changed: the files are committed, so that pages show without a build.
"""

import sys
from pathlib import Path

import torch

import sde
from sde.cli import common
from sde.cli.demo.core import follow, learn
from sde.cli.demo.moons import density

MOST = {".png": 150_000, ".gif": 1_500_000}
SEED = 0


def moons(folder: Path) -> None:
    """The film of both ways, and the learned score on the density of the moons."""
    import matplotlib.pyplot as plt

    rng = common.generators(SEED, "moons")
    with common.initial_weights(SEED):
        net = sde.nets.MLP(dim=2, width=64, depth=3)
    data = sde.data.moons(20_000, generator=next(rng)).x
    model, _ = learn(data, net, steps=6000, lr=5e-3, ema=0.995, generator=next(rng))
    noise = model.prior(torch.empty(1500, 2), next(rng))
    runs = follow(model, noise, 160, next(rng))
    sde.plot.animate(runs, folder / "sde-ode.gif", frames=80, n=1500, limits=2.9, size=3.6, hold=2)
    exact = sde.ExactScore(density(), sde.VP())
    times, bounds = [1.0, 0.3, 0.12, 0.001], [(-r, r, -r, r) for r in (3.0, 2.8, 2.6, 2.5)]
    with sde.plot.style(), torch.no_grad():
        figure, axes = plt.subplots(1, 4, figsize=(9.2, 2.6), layout="constrained")
        sde.plot.score_strip(model, times, bounds, log_prob=exact.log_prob, axes=axes)
    save(figure, folder / "moons-score-field.png", dpi=140)


def digits(folder: Path) -> None:
    """New digits above their nearest training images."""
    rng = common.generators(SEED, "digits")
    data = sde.data.digits()
    with common.initial_weights(SEED):
        net = sde.nets.MLP(dim=64, width=256, depth=3, classes=10)
    told = {"cond": {"label": data.label}, "generator": next(rng)}
    model, _ = learn(data.x, net, steps=6000, batch=128, lr=2e-3, ema=0.995, **told)
    noise = model.prior(torch.empty(10, 1, 8, 8), next(rng))
    given = model.given(label=torch.arange(10))
    x = sde.sample(given, x=noise, steps=200, solver=sde.EulerMaruyama(), generator=next(rng))
    save(sde.plot.neighbours(x, data).figure, folder / "digits.png", dpi=140)


def line(folder: Path) -> None:
    """A density on a line, the way to noise above, the way back below."""
    import matplotlib.pyplot as plt

    rng = common.generators(SEED, "line")
    target = sde.Mixture([0.25, 0.45, 0.3], means=[[-1.6], [0.0], [1.3]], covs=[0.02, 0.03, 0.05])
    exact = sde.ExactScore(target, sde.Cosine())
    x0 = target.sample(4000, next(rng)).float()
    up = torch.linspace(exact.sde.t_min, exact.sde.t_max, 801)
    forward = sde.record(sde.trajectory(exact.sde, x0, up, sde.EulerMaruyama(), next(rng)), every=4)
    noise = exact.prior(torch.empty(4000, 1), next(rng))
    back = sde.record(
        sde.trajectory(sde.ReverseSDE(exact, eta=1), noise, up.flip(0), sde.EulerMaruyama(), next(rng)), every=4
    )
    with sde.plot.style():
        margins = {"left": 0.2, "right": 0.86, "bottom": 0.1, "top": 0.9, "hspace": 0.55}
        figure, axes = plt.subplots(2, 1, figsize=(7.2, 6), gridspec_kw=margins)
    for ax, run, title in zip(axes, (forward, back), ("forward SDE", "reverse SDE"), strict=True):
        sde.plot.space_time(run, exact.log_prob, n=5, ax=ax, bounds=3.2)
        ax.set_title(title)
    save(figure, folder / "space-time.png", dpi=140)


def guidance(folder: Path) -> None:
    """What guidance is said to sample, and what it samples: two densities, computed on a grid."""
    import matplotlib.pyplot as plt

    s, vp, w, half, n = torch.linspace(0, 1, 7), sde.VP(), 4, 2.8, 60
    upper = torch.stack([2.4 * s - 1, 1.9 * s**1.5], 1)
    both = torch.cat([upper, upper * torch.tensor([1.0, -1.0])])
    given = sde.ExactScore(sde.Mixture([1.0] * 7, upper, [0.07] * 7), vp)
    free = sde.ExactScore(sde.Mixture([1.0] * 14, both, [0.07] * 14), vp)
    line = torch.linspace(-half, half, n, dtype=torch.float64)
    x, t = torch.cartesian_prod(line, line), vp.t_min
    up = sde.grids.data_scaled(vp, 64, scale=free.data_scale()).flip(0)
    found = {
        "told the class: p(x|c)": given.log_prob(x, t),
        "said: p(x) p(c|x)⁴": (1 - w) * free.log_prob(x, t) + w * given.log_prob(x, t),
        "sampled by guidance, w = 4": sde.log_prob(sde.CFG(given, free, w), x, up),
    }
    with sde.plot.style():
        figure, axes = plt.subplots(1, 3, figsize=(9.2, 3.2), layout="constrained")
    for ax, (name, log_p) in zip(axes, found.items(), strict=True):
        image, extent = torch.exp(log_p - log_p.max()).reshape(n, n).T, (-half, half, -half, half)
        ax.imshow(image, origin="lower", extent=extent, interpolation="bilinear", cmap="viridis")
        ax.set(title=name, xlabel="x₁", ylabel="x₂")
    save(figure, folder / "guidance.png", dpi=120)


def objectives(folder: Path) -> None:
    """How much the gradients of three losses scatter, for a trained network on three Gaussians."""
    rng = common.generators(SEED, "objectives")
    law = sde.Mixture([0.5, 0.3, 0.2], [[-1.2, -0.4], [1.0, 0.9], [0.9, -1.1]], [0.12, 0.06, 0.04])
    x = law.sample(20_000, next(rng)).float()
    with common.initial_weights(SEED):
        net = sde.nets.MLP(dim=2, width=64, depth=2)
    model = sde.ScoreModel(net, sde.VP(), mean=x.mean(0), scale=float(x.std()))
    sde.fit(model, x, 1500, lr=4e-3, generator=next(rng), progress=False)
    losses = {
        "Denoising()": sde.train.Denoising(),
        "Implicit()": sde.train.Implicit(),
        "Sliced()": sde.train.Sliced(),
    }
    found = sde.train.gradient_variance(
        model, x, losses, torch.linspace(0.01, 1, 16), weight=sde.train.noise, generator=next(rng)
    )
    save(sde.plot.variances(found).figure, folder / "objectives.png", dpi=120)


def save(figure, path: Path, dpi: int) -> None:
    """A picture of few bytes: a palette is enough for a page."""
    from PIL import Image

    figure.savefig(path, dpi=dpi, bbox_inches="tight")
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(255, dither=Image.Dither.NONE)
    small.save(path, optimize=True, dpi=(dpi, dpi))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "_static")
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (line, moons, digits, guidance, objectives):
        draw(folder)
    for path in sorted(folder.iterdir()):
        size, most = path.stat().st_size, MOST.get(path.suffix, 10**9)
        print(f"{path}: {size / 1000:.0f} kB")
        if size > most:
            sys.exit(f"{path} has {size} bytes, more than {most}: fewer frames, or a lower dpi")


if __name__ == "__main__":
    main()
