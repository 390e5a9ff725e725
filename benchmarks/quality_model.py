"""What the network of a file is worth on CIFAR-10: `python -m benchmarks quality --model FILE`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import sde
from benchmarks import harness, quality
from benchmarks.harness import number
from benchmarks.quality_train import Plan, wait


def measure(
    file: Path, plan: Plan, folder: Path, evaluations: Sequence[int] = (10, 20, 35), samples: int = 50_000
) -> dict[str, Any]:
    """Fréchet distances and bits per dimension of the network of a file, told the class and not, on all test images."""
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() and not plan.tiny else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    seen, model = quality.data(plan, device), sde.load(file).float()
    if getattr(model.net, "channels", 3) != 3 or getattr(model.net, "size", 32) != 32:
        raise ValueError(f"{file} holds a network for other images than CIFAR-10's, 3×32×32: name another file")
    judge = quality.Judge(model.net, model, plan, seen, bits_compiled=True)
    classes = int(getattr(model.net, "classes", 0))
    found: dict[str, Any] = {
        "file": file.name,
        "device": quality.place(device),
        "floor": seen.floor,
        "torch": torch.__version__,
    }
    found |= {"parameters": sum(p.numel() for p in model.parameters()), "frechet": [], "bits": []}
    for told in [False, True] if classes else [False]:
        began = time.monotonic()
        row = {"told": told, "images": len(seen.test), **judge.bits(len(seen.test), told)}
        row["seconds"] = time.monotonic() - began
        print(f"  {row}", flush=True)
        found["bits"].append(row)
    for told in [classes, 0] if classes else [0]:
        for steps in evaluations:
            began = time.monotonic()
            features_ = judge.frechet(samples, steps, told)
            distances = [judge.distance(features_[:n]) for n in (samples // 5, samples)]
            wait(device)
            row = {"told": bool(told), "evaluations": steps, "few": distances[0], "many": distances[1]}
            row |= {"samples": samples, "seconds": time.monotonic() - began}
            print(f"  {row}", flush=True)
            found["frechet"].append(row)
    quality.draw(
        judge, folder / f"{file.stem}.png", f"{file.stem}: {evaluations[1]} evaluations", classes, evaluations[1]
    )
    (folder / f"{file.stem}.model.json").write_text(json.dumps(found, indent=1))
    return found


def report(found: dict[str, Any]) -> str:
    """The page of one finished network."""
    told = {True: "the class", False: "nothing"}
    far = [
        [told[r["told"]], r["evaluations"], *map(number, (r["few"], r["many"])), f"{r['seconds']:.0f}"]
        for r in found["frechet"]
    ]
    few = []
    for r in found["bits"]:
        value = f"{r['value']:.4f} ± {r['error']:.4f}"
        few.append([told[r["told"]], r["images"], f"{r['evaluations']:.0f}", value, f"{r['seconds']:.0f}"])
    many = found["frechet"][0]["samples"] if found["frechet"] else 0
    header = ["told", "evaluations", f"{many // 5} samples", f"{many} samples", "s"]
    return "\n\n".join([
        f"# {found['file']}: {found['parameters'] / 1e6:.2f}M parameters",
        f"{found['device']}, torch {found['torch']}; page of {harness.machine()}.",
        "## Fréchet distance on ResNet-56 features, against the 50,000 training images",
        f"`sde.sample`'s default, network in bfloat16. It is no FID. Test images: {found['floor']:.3f}.",
        harness.table(header, far),
        "## Bits per dimension of the test images",
        "Probability flow, uniform dequantisation, one Hutchinson probe an image, network in float32 (TF32).",
        harness.table(["told", "images", "evaluations", "bits per dimension", "s"], few),
    ]) + "\n"  # fmt: skip
