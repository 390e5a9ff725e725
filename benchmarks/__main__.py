"""`python -m benchmarks [NAME ...] [--quick] [--out FOLDER]`: measure, print, write tables and pictures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import (
    accuracy,
    accuracy_report,
    codes,
    distill,
    gpu,
    gpu_nets,
    likelihood,
    likelihood_report,
    objectives,
    objectives_report,
    orders,
    orders_report,
    overhead,
    overhead_report,
    pictures,
    posterior,
    posterior_report,
    quality,
    quality_model,
    quality_report,
    restoration,
    stochastic,
    stochastic_report,
    training,
    training_report,
)
from benchmarks.peers import quiet
from benchmarks.quality_train import TINY, Plan


def loops(out: Path, given: argparse.Namespace) -> str:
    with quiet():  # some loops draw progress bars
        result = overhead.measure(rounds=3, at_least=1e-3) if given.quick else overhead.measure()
    pictures.loops(result, out / "overhead.png")
    return overhead_report.report(result)


def fits(out: Path, given: argparse.Namespace) -> str:
    small = {"steps": 100, "rounds": 3, "seeds": 1, "ladder": training.rungs(150, 1000, 1.6), "samples": 4000}
    result = training.measure(**small) if given.quick else training.measure()
    pictures.fits(result, out / "training.png")
    return training_report.report(result)


def errors(out: Path, given: argparse.Namespace) -> str:
    unseen = accuracy.UNSEEN if given.unseen is None else tuple(f"unseen {seed}" for seed in given.unseen)
    if given.quick:
        few = {"targets": ("ring", "broad"), "unseen": unseen[:1], "budgets": (5, 10), "batch": 40}
        result = accuracy.measure(**few, cache=None)
    else:
        result = accuracy.measure(unseen=unseen, fresh=given.peers == "fresh", jobs=given.jobs)
    pictures.accuracies(result, out / "accuracy.png")
    return accuracy_report.report(result)


def noises(out: Path, given: argparse.Namespace) -> str:
    small: dict = {"targets": ("ring",), "budgets": (10,), "samples": 500, "final_samples": 2000, "wrong_samples": 500}
    small["wrong_options"] = {"targets": ("ring",), "budgets": (20,), "training": (20,)}
    result = stochastic.measure(**small) if given.quick else stochastic.measure(jobs=given.jobs)
    pictures.distances(result, out / "stochastic.png")
    return stochastic_report.report(result)


def restorations(out: Path, given: argparse.Namespace) -> str:
    small: dict = {"problems": posterior.PROBLEMS[:1], "budgets": (20, 40), "samples": 20}
    result = posterior.measure(**small) if given.quick else posterior.measure(jobs=given.jobs)
    posterior_report.picture(result, out / "posterior.png")
    return posterior_report.report(result)


def few_steps(out: Path, given: argparse.Namespace) -> str:
    books = distill.measure(distill.TINY, distill.TINY) if given.quick else distill.measure()
    distill.picture(books, out / "distill.png")
    return distill.report(books)


def encodings(out: Path, given: argparse.Namespace) -> str:
    books = codes.measure(codes.TINY) if given.quick else codes.measure()
    codes.picture(books, out / "codes.png")
    return codes.report(books)


def densities(out: Path, given: argparse.Namespace) -> str:
    few = {"problems": likelihood.PROBLEMS[::3], "points": 40, "rounds": 3, "steps": 100, "quick": True}
    with quiet():
        result = likelihood.measure(**few) if given.quick else likelihood.measure()
    likelihood_report.picture(result, out / "likelihood.png")
    return likelihood_report.report(result)


def losses(out: Path, given: argparse.Namespace) -> str:
    few = {"seconds": 0.02, "seeds": 1, "test": 50, "turn": 2, "rounds": 3}
    result = objectives.measure(**few) if given.quick else objectives.measure()
    objectives_report.picture(result, out / "objectives.png")
    return objectives_report.report(result)


def slopes(out: Path, given: argparse.Namespace) -> str:
    result = orders.measure(kinds=("VP",), every=6) if given.quick else orders.measure()
    orders_report.picture(result, out / "orders.png")
    return orders_report.report(result)


def images(out: Path, given: argparse.Namespace) -> str:
    return gpu.report(gpu.measure(given.quick, given.only, given.minutes))


def qualities(out: Path, given: argparse.Namespace) -> str:
    plan = TINY if given.quick else Plan()
    scratch = out / "quality" if given.quick else Path("out/quality")
    if given.marks:
        plan = replace(plan, marks=tuple(sorted(given.marks)))
        scratch = scratch / "-".join(f"{mark:g}" for mark in plan.marks)
    if given.model is not None:
        few = {"evaluations": (2, 3), "samples": 20} if given.quick else {}
        return quality_model.report(quality_model.measure(given.model, plan, scratch, **few))
    books = quality.measure(plan, scratch, given.only, given.minutes)
    quality_report.picture(books, out / "quality.png")
    return quality_report.report(books)


def restored(name: str, page: str) -> Callable[[Path, argparse.Namespace], str]:
    def run(out: Path, given: argparse.Namespace) -> str:
        few = {"count": 3, "evaluations": 8, "shown": 3, "samples": 2} if given.quick else {}
        book = restoration.on(name, **few)
        restoration.picture(book, out / f"{page}.png")
        return restoration.report(book, f"{page}.png")

    return run


def kernels(out: Path, given: argparse.Namespace) -> str:
    return "\n".join(gpu.profile(item, given.quick) for item in given.only or ["unet"])


BENCHMARKS: dict[str, Callable[[Path, argparse.Namespace], str]] = {
    "overhead": loops,
    "training": fits,
    "accuracy": errors,
    "stochastic": noises,
    "posterior": restorations,
    "likelihood": densities,
    "objectives": losses,
    "orders": slopes,
    "distill": few_steps,
    "codes": encodings,
    "gpu": images,
    "gpu-profile": kernels,
    "quality": qualities,
    "restoration": restored("fashion-mnist", "restoration"),
    "restoration-cifar10": restored("cifar10", "restoration-cifar10"),
}
ON_A_GPU = ("gpu", "gpu-profile", "quality", "restoration-cifar10")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "which", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all that this machine can run if none is named"
    )
    parser.add_argument("--quick", action="store_true", help="a minute instead of many: to see that everything runs")
    parser.add_argument(
        "--out", type=Path, help="where tables and pictures go; benchmarks/results, or out/benchmarks if quick"
    )
    parser.add_argument(
        "--peers",
        choices=("fresh", "kept"),
        default="fresh",
        help="accuracy: measure the peers anew, which takes an hour and more, or take what the last run kept in out/",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="accuracy, stochastic, posterior: problems at once (default 1)"
    )
    parser.add_argument("--unseen", type=int, nargs="*", metavar="SEED", help="accuracy: other unseen targets")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="ITEM",
        help=f"gpu, gpu-profile, quality: of sampling, {', '.join(gpu_nets.NETWORKS)}, NETWORK/eager and NETWORK/cudnn",
    )  # fmt: skip
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.0,
        help="gpu, quality: begin nothing that would end later (default 8); 0 makes the page of quality",
    )
    parser.add_argument(
        "--marks", type=float, nargs="+", metavar="S",
        help="quality: judge after these seconds of training; the learning rate falls to 0 at the last",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="FILE", help="quality: judge the network of a checkpoint")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.which) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
    strange = [
        item
        for item in given.only
        if item.removesuffix("/eager").removesuffix("/cudnn") not in (*gpu_nets.NETWORKS, "sampling")
    ]
    if strange:
        parser.error(f"--only has no item {strange[0]!r}: choose from sampling, {', '.join(gpu_nets.NETWORKS)}")
    usual = [name for name in BENCHMARKS if torch.cuda.is_available() or name not in ON_A_GPU]
    out = given.out or (Path("out/benchmarks") if given.quick else Path(__file__).parent / "results")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in given.which or usual:
        began = time.monotonic()
        print(f"{name}: measuring ...", flush=True)
        page = BENCHMARKS[name](out, given)
        page_name = f"{name}-{given.model.stem}" if name == "quality" and given.model else name
        (out / f"{page_name}.md").write_text(page, encoding="utf-8")
        print(f"\n{page}\n{name}: {time.monotonic() - began:.0f} s, written to {out / page_name}.md\n", flush=True)


if __name__ == "__main__":
    main()
