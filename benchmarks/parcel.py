r"""A training checkpoint in pieces, for machines that pass files on only up to some size.

    python -m benchmarks.parcel pack out/train/cifar10/model.safetensors FOLDER [--mebibytes 15] [--lean]
    python -m benchmarks.parcel unpack FOLDER out/train/cifar10/model.safetensors

The pieces and `parcel.json`, which has their SHA-256 and that of the whole, come together to the same bytes, and the
run goes on as if it had never moved. `--lean` leaves out half: of Adam's slots the first moments, which forget within
ten steps, become zero, and the second ones are rounded to bfloat16, a change of .4 % at most in a step. Weights,
averages and the generator's state stay exact, so that data, noise and levels are drawn as they would have been. For a
run of P weights: 16 P bytes whole, 10 P lean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch

from sde.train.checkpoint import read, write

INDEX = "parcel.json"
FIRST, SECOND = "exp_avg", "exp_avg_sq"


def leaner(file: Path, to: Path) -> Path:
    """The checkpoint with smaller slots."""
    manifest, tensors = read(file)
    manifest.pop("format")
    shapes = {}
    for name in list(tensors):
        slot = name.rpartition("/")[2]
        if name.startswith("optimizer/") and slot == FIRST:
            shapes[name] = list(tensors.pop(name).shape)
        elif name.startswith("optimizer/") and slot == SECOND:
            tensors[name] = tensors[name].to(torch.bfloat16)
    return write(to, {**manifest, "lean": shapes}, tensors)


def fuller(file: Path, to: Path) -> Path:
    """The checkpoint that `fit` reads, of a lean one."""
    manifest, tensors = read(file)
    manifest.pop("format")
    tensors |= {name: torch.zeros(shape) for name, shape in manifest.pop("lean").items()}
    for name, value in tensors.items():
        if name.startswith("optimizer/") and name.endswith(f"/{SECOND}"):
            tensors[name] = value.float()
    return write(to, manifest, tensors)


def pack(file: Path, folder: Path, mebibytes: float = 15.0, lean: bool = False) -> list[Path]:
    """Write the pieces; their paths, the index last."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{file.stem}.[0-9][0-9]"):
        old.unlink()
    whole = leaner(file, folder / "lean.tmp") if lean else file
    data = whole.read_bytes()
    if lean:
        whole.unlink()
    size, paths = max(1, int(mebibytes * 2**20)), []
    for i in range(0, len(data), size):
        paths.append(folder / f"{file.stem}.{len(paths):02d}")
        paths[-1].write_bytes(data[i : i + size])
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    index = {"lean": lean, "whole": hashlib.sha256(data).hexdigest(), "pieces": sums}
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    return [*paths, folder / INDEX]


def unpack(folder: Path, file: Path) -> Path:
    """Put the pieces together.

    Raises:
        ValueError: If a piece is missing or was altered.
    """
    index = json.loads((folder / INDEX).read_text())
    data = b""
    for name, digest in index["pieces"].items():
        piece = folder / name
        if not piece.is_file() or hashlib.sha256(piece.read_bytes()).hexdigest() != digest:
            raise ValueError(f"piece {piece} is missing or was altered: fetch it again")
        data += piece.read_bytes()
    if hashlib.sha256(data).hexdigest() != index["whole"]:
        raise ValueError(f"the pieces in {folder} do not make the file they were cut from: pack it again")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".joined")
    part.write_bytes(data)
    if index["lean"]:
        fuller(part, file)
        part.unlink()
    else:
        part.replace(file)
    return file


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parcel", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--mebibytes", type=float, default=15.0, help="largest piece (default 15)")
    parser.add_argument("--lean", action="store_true", help="smaller optimizer slots: see the module")
    given = parser.parse_args(arguments)
    if given.what == "unpack":
        print(f"wrote {unpack(given.source, given.target)}")
        return
    paths = pack(given.source, given.target, given.mebibytes, given.lean)
    print(f"wrote {len(paths) - 1} pieces, {sum(p.stat().st_size for p in paths) / 2**20:.1f} MiB, and {paths[-1]}")


if __name__ == "__main__":
    main()
