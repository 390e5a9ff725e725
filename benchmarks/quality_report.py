"""The page and the picture of `benchmarks.quality`: of what there is, so that half a run can be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import number
from benchmarks.quality import NETWORKS, SIGMAS

Book = dict[str, Any]
ORANGE, BLUE, GREY = "#E69F00", "#0072B2", "#8A8A8A"
WHAT = (
    "CIFAR-10, 32×32×3. Each network was trained by `sde.fit_steps` alone on the GPU: EDM's loss, batches of 256, "
    "flips, bytes dequantised, bfloat16 autocast, channels_last, `torch.compile`, fused Adam at 8e-4 with ten seconds "
    "of warm-up and a linear fall to zero at the last mark, clipping at 1, power-function averages. Seconds are those "
    "of training: compilation (three steps) and judging are not counted. The rule of the learning rate is in seconds, "
    "too, so that it is one rule for a quick and a slow network."
)
HOW = (
    "Fréchet distance: of the 64 pooled features of a ResNet-56 trained on CIFAR-10, 10,000 samples of `sde.sample`'s "
    "default against the 50,000 training images, one noise for all networks, network in bfloat16. It is no FID. Bits: "
    "per dimension, of 1000 test images with uniform dequantisation, one probe each, network in float32 (TF32). Both "
    "are given for the average, of two widths, that is better; denoising error (mean square, of the narrower average) "
    "at sigma = " + ", ".join(map(str, SIGMAS)) + " over the test images."
)


def keys(book: Book, start: str, mark: float) -> dict[str, Any]:
    """Results of a mark by the width of the average."""
    return {k.split(" / ")[2]: v for k, v in book["found"].items() if k.startswith(f"{start} / {mark:g} / ")}


def frechet(book: Book, mark: float, evaluations: int) -> tuple[float, str] | None:
    """The least distance, and the average it belongs to."""
    return min(((v, width) for width, v in keys(book, f"frechet {evaluations}", mark).items()), default=None)


def bits(book: Book, mark: float) -> tuple[float, float] | None:
    """The fewest bits, and their standard error."""
    return min(((v["value"], v["error"]) for v in keys(book, "bits", mark).values()), default=None)


def evaluations(books: Sequence[Book]) -> list[int]:
    """Numbers of evaluations that there are results for."""
    named = {k.split(" / ")[0] for book in books for k in book["found"]}
    return sorted(int(k.split()[1]) for k in named if k.startswith("frechet"))


def _row(book: Book, row: dict[str, Any], steps: Sequence[int]) -> list[object]:
    mark = row["mark"]
    cells: list[object] = [f"{mark:g}", book["network"], f"{row['images'] / 1e6:.2f}"]
    cells.append(f"{row['images'] / row['seconds']:.0f}")
    for n in steps:
        least = frechet(book, mark, n)
        cells.append(f"{least[0]:.3f} ({least[1]})" if least else "–")
    few = bits(book, mark)
    cells.append(f"{few[0]:.3f} ± {few[1]:.3f}" if few else "–")
    errors = next(iter(keys(book, "denoising", mark).values()), None)
    return [*cells, " / ".join(map(number, errors)) if errors else "–"]


def _ahead(books: Sequence[Book]) -> str:
    """Ours against theirs, mark by mark."""
    by = {book["network"]: book for book in books}
    if not all(name in by for name in NETWORKS):
        return "One of the two networks is missing: nothing to compare yet."
    ours, theirs = (by[name] for name in NETWORKS)
    rows, steps = [], evaluations(books)
    for row in ours["marks"]:
        cells: list[object] = [f"{row['mark']:g}"]
        for n in steps:
            a, b = (frechet(book, row["mark"], n) for book in (ours, theirs))
            cells.append(number(b[0] / a[0]) if a and b else "–")
        a, b = (bits(book, row["mark"]) for book in (ours, theirs))
        rows.append([*cells, f"{b[0] - a[0]:+.3f}" if a and b else "–"])
    header = ["seconds", *(f"Fréchet, {n}: theirs ÷ ours" for n in steps), "bits: theirs − ours"]
    return harness.table(header, rows)


def report(books: Sequence[Book]) -> str:
    """The Markdown page."""
    books = sorted(
        books,
        key=lambda b: (
            b["network"] not in NETWORKS,
            NETWORKS[::-1].index(b["network"]) if b["network"] in NETWORKS else 0,
        ),
    )
    steps = evaluations(books)
    rows = sorted(
        (row["mark"], i, _row(book, row, steps)) for i, book in enumerate(books[::-1]) for row in book["marks"]
    )
    header = ["seconds", "network", "images seen, 10⁶", "images/s", *(f"Fréchet, {n} evaluations" for n in steps)]
    header += ["bits per dimension", f"denoising error at {' / '.join(map(str, SIGMAS))}"]
    devices = sorted({f"{b.get('device')}, torch {b.get('torch')}" for b in books}) or ["nothing measured yet"]
    floors = sorted({f"{b['floor']:.3f}" for b in books if "floor" in b})
    sizes = ", ".join(f"{b['network']} {b['parameters'] / 1e6:.1f}M" for b in books if "parameters" in b)
    skipped = [f"- {b['network']}: {line}" for b in books for line in b.get("skipped", [])]
    return "\n\n".join([
        "# Time to quality on CIFAR-10",
        f"{'; '.join(devices)}; page of {harness.machine()}. Parameters: {sizes or '–'}.",
        WHAT,
        HOW,
        f"Floor of the Fréchet distance, 10,000 test images against the training images: {', '.join(floors) or '–'}.",
        harness.table(header, [row for *_, row in rows], left=2),
        "## Ours against diffusers'",
        _ahead(books),
        "## Not measured",
        "\n".join(skipped) or "Nothing was skipped.",
    ]) + "\n"  # fmt: skip


def picture(books: Sequence[Book], path: Path) -> None:
    """Fréchet distance and bits against seconds of training."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    steps = evaluations(books)[:1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for book in books:
        colour = BLUE if "diffusers" in book["network"] else ORANGE
        told = {"color": colour, "marker": "o", "label": book["network"]}
        marks = [row["mark"] for row in book["marks"]]
        far = [(m, d[0]) for m in marks for n in steps if (d := frechet(book, m, n))]
        few = [(m, b) for m in marks if (b := bits(book, m))]
        left.plot([m for m, _ in far], [d for _, d in far], **told)
        right.errorbar([m for m, _ in few], [b for _, (b, _) in few], [e for _, (_, e) in few], capsize=3, **told)
    floor = next((b["floor"] for b in books if "floor" in b), None)
    if floor:
        left.axhline(floor, color=GREY, linewidth=1, label="test images")
    left.set(yscale="log", ylabel="Fréchet distance, ResNet-56 features", title="10,000 samples")
    right.set(ylabel="bits per dimension", title="1000 test images")
    for ax in (left, right):
        ax.set_xlabel("seconds of training on one GPU")
        ax.set_xlim(left=0)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    figure.suptitle("CIFAR-10: quality after the same seconds of the same training")
    figure.savefig(path, dpi=120)
    plt.close(figure)
