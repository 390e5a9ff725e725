"""Checkpoints: what is saved is what is loaded, a damaged file is refused, an interrupted write leaves the old one."""

import itertools
import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import sde
from sde.train import CheckpointError
from sde.train.checkpoint import read, write

NETS: dict[str, Callable[[], nn.Module]] = {
    "fourier": lambda: sde.nets.MLP(dim=2, width=4, depth=1, features=4),
    "sinusoidal": lambda: sde.nets.MLP(dim=2, width=4, depth=2, features=4, time="sinusoidal"),
    "classes": lambda: sde.nets.MLP(dim=2, width=4, depth=1, features=4, classes=3),
}


class Ramp(sde.ScalarSDE):
    """A student's SDE."""

    def __init__(self, height: float = 2.0) -> None:
        self.height = height

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.height * t


class MyNet(nn.Module):
    """A network of one's own, with a keyword-only argument, a list and a network inside."""

    def __init__(self, sizes: list[int], inner: nn.Module | None = None, *, gain: float = 1.0) -> None:
        super().__init__()
        self.sizes, self.inner, self.gain = sizes, inner, gain
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = x
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return self.gain * h + (0 if self.inner is None else self.inner(x, c))


class Plain(nn.Module):
    """A network without a constructor of its own."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return 0.5 * x


def shuffled(model: sde.ScoreModel) -> sde.ScoreModel:
    """The model with weights that no constructor makes."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return model


def agree(a: sde.ScoreModel, b: sde.ScoreModel, **cond: Tensor) -> bool:
    """The same bits at every time."""
    t = a.sde.t_min + torch.linspace(0, 1, 7, dtype=torch.float64) * (a.sde.t_max - a.sde.t_min)
    x = torch.randn(7, *a.sde.state(torch.zeros(1, 2)).shape[1:], generator=torch.Generator().manual_seed(0))
    x = x.to(a.placement()[1])
    p, q = a(x, t, **cond), b(x, t, **cond)
    return torch.equal(p.x0, q.x0) and torch.equal(p.velocity, q.velocity)


# Round trips.


def test_every_model_comes_back(forward: sde.ForwardSDE, param: str, tmp_path: Path) -> None:
    for name, make in NETS.items():
        model = shuffled(sde.ScoreModel(make(), forward, param, mean=[1.0, -2.0], scale=1.5)).eval()
        path = tmp_path / "model.safetensors"
        if type(forward) is sde.FromCoefficients:
            with pytest.raises(TypeError, match=r"ScoreModel\.sde\.f is <function .*write a class .*ScalarSDE"):
                sde.save(model, path)
            assert list(tmp_path.iterdir()) == []
            continue
        loaded = sde.load(sde.save(model, path), types=[type(forward)])
        assert type(loaded.sde) is type(forward)
        assert not loaded.training
        cond = {"label": torch.arange(7) % 3} if name == "classes" else {}
        assert agree(model, loaded, **cond)
        assert sde.train.describe(loaded) == sde.train.describe(model)


@pytest.mark.parametrize(
    "mean",
    [3.0, [1.0, 2.0], torch.tensor([[0.1], [0.2]]), torch.arange(12.0).reshape(3, 2, 2)],
    ids=["number", "list", "column", "image"],
)
def test_means(mean: object, tmp_path: Path) -> None:
    model = sde.ScoreModel(Plain(), sde.VP(), mean=mean)  # type: ignore[arg-type]
    loaded = sde.load(sde.save(model, tmp_path / "m"), types=[Plain])
    assert torch.equal(loaded.mean, model.mean)
    assert loaded.mean.shape == torch.as_tensor(mean).shape
    assert not loaded.centred


def test_a_table_is_exact(tmp_path: Path, small: Callable) -> None:
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for given in (table, table.tolist(), table.float(), table.numpy()):
        model = small(sde.Tabulated(given))
        loaded = sde.load(sde.save(model, tmp_path / "t"))
        ours, theirs = (torch.as_tensor(s.alphas_cumprod, dtype=torch.float64) for s in (model.sde, loaded.sde))
        assert torch.equal(ours, theirs)
        t = torch.arange(1.0, 1001.0, dtype=torch.float64)
        assert torch.equal(model.sde.log_snr(t), loaded.sde.log_snr(t))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, tmp_path: Path, small: Callable) -> None:
    model = shuffled(small(sde.EDM(), mean=0.3)).to(dtype).eval()
    loaded = sde.load(sde.save(model, tmp_path / "d"))
    assert {k: v.dtype for k, v in loaded.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}
    assert loaded.placement()[1] == dtype
    assert agree(model, loaded)


def test_a_network_of_another_dtype_than_its_mean(tmp_path: Path, small: Callable) -> None:
    model = shuffled(small())
    model.net.bfloat16()
    loaded = sde.load(sde.save(model, tmp_path / "d"))
    assert loaded.mean.dtype == torch.float32
    assert loaded.net.embed.frequencies.dtype == model.net.embed.frequencies.dtype  # a constant that no file holds
    assert torch.equal(loaded.net.embed.frequencies, model.net.embed.frequencies)


@pytest.mark.parametrize("coupled", [True, False])
def test_the_coupled_flag(coupled: bool, tmp_path: Path) -> None:
    model = sde.ScoreModel(NETS["fourier"](), sde.Flow(), "velocity", coupled=coupled)
    assert sde.load(sde.save(model, tmp_path / "c")).coupled is coupled


def test_a_network_and_an_sde_of_ones_own(tmp_path: Path) -> None:
    net = MyNet([2, 5, 2], MyNet([2, 2]), gain=0.25)
    model = shuffled(sde.ScoreModel(net, Ramp(3.0), "x0"))
    path = sde.save(model, tmp_path / "mine.safetensors")
    loaded = sde.load(path, types=[MyNet, Ramp])
    assert agree(model, loaded)
    assert loaded.net.gain == 0.25
    assert loaded.sde.height == 3.0
    for types in ([], [MyNet], [Ramp], [sde.nets.MLP]):
        with pytest.raises(
            CheckpointError, match=r"unknown class '.*(MyNet|Ramp)': known are .*pass types=\[(MyNet|Ramp)\]"
        ):
            sde.load(path, types=types)


def test_a_class_of_ones_own_does_not_pass_for_ours(tmp_path: Path) -> None:
    """Of the same name and arguments, and another schedule: never silently ours."""

    @dataclass(frozen=True)
    class VP(sde.ScalarSDE):
        beta_min: float = 0.1
        beta_max: float = 20.0
        t_min: float = 1e-3
        t_max: float = 1.0

        def alpha(self, t: Tensor) -> Tensor:
            return torch.exp(-9 * t)

        def sigma(self, t: Tensor) -> Tensor:
            return torch.sqrt(1 - self.alpha(t) ** 2)

    path = sde.save(sde.ScoreModel(NETS["fourier"](), VP()), tmp_path / "vp")
    with pytest.raises(CheckpointError, match="unknown class"):
        sde.load(path)
    assert type(sde.load(path, types=[VP]).sde) is VP
    ours = sde.save(sde.ScoreModel(NETS["fourier"](), sde.VP()), tmp_path / "ours")
    assert type(sde.load(ours, types=[VP]).sde) is sde.VP


def test_numbers_of_numpy(tmp_path: Path) -> None:
    forward = sde.VP(beta_max=np.float64(19.0), beta_min=np.float32(0.25))  # type: ignore[arg-type]
    net = MyNet(np.array([2, 2]), gain=np.float32(0.5))  # type: ignore[arg-type]
    loaded = sde.load(sde.save(sde.ScoreModel(net, forward), tmp_path / "n"), types=[MyNet])
    assert loaded.sde == sde.VP(0.25, 19.0)
    assert loaded.net.sizes == [2, 2]


def test_a_training_checkpoint_is_a_model(tmp_path: Path, small: Callable, points: Tensor) -> None:
    model, path = small(), tmp_path / "run.safetensors"
    sde.fit(model, points, 20, checkpoint=path, progress=False)
    assert agree(model, sde.load(path))


def test_what_is_loaded_does_not_hang_on_its_file(tmp_path: Path, small: Callable) -> None:
    path = sde.save(small(), tmp_path / "m")
    loaded = sde.load(path)
    before = [p.clone() for p in loaded.parameters()]
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), before, strict=True))


def test_a_loaded_model_trains_on(tmp_path: Path, small: Callable, points: Tensor) -> None:
    loaded = sde.load(sde.save(small(), tmp_path / "m"))
    assert all(p.requires_grad for p in loaded.parameters())
    sde.fit(loaded, points, 2, checkpoint=tmp_path / "m", resume=False, progress=False)


def test_notes(tmp_path: Path, small: Callable) -> None:
    path = sde.save(small(), tmp_path / "m", licence="MIT", epochs=3, scores=[0.1, None])
    assert read(path)[0]["note"] == {"licence": "MIT", "epochs": 3, "scores": [0.1, None]}
    for bad in (object(), float("nan"), torch.zeros(2), {1, 2}):
        with pytest.raises(TypeError, match="a note must be plain values"):
            sde.save(small(), tmp_path / "other", bad=bad)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_folders_are_made_and_paths_may_be_text(tmp_path: Path, small: Callable) -> None:
    path = sde.save(small(), f"{tmp_path}/a/b/c.safetensors")
    assert path == tmp_path / "a" / "b" / "c.safetensors"
    sde.load(str(path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_file_has_the_permissions_of_any_other(tmp_path: Path, small: Callable) -> None:
    (tmp_path / "any").touch()
    path = sde.save(small(), tmp_path / "model")
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


# What cannot be saved.


class Forgetful(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)


class Grabbing(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes


class Keeping(nn.Module):
    def __init__(self, kept: object) -> None:
        super().__init__()
        self.kept = kept


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Forgetful(3), r"Forgetful does not keep its argument 'width': store it as self\.width"),
        (Grabbing(1, 2), r"Grabbing takes \*sizes.*give its class named ones"),
        (nn.Sequential(nn.Linear(2, 2)), r"Sequential takes \*args"),
        (Keeping(torch.tanh), r"ScoreModel\.net\.kept is .*which a checkpoint cannot hold"),
        (Keeping(lambda x: x), r"ScoreModel\.net\.kept is <function <la"),
        (Keeping(nn.ReLU), r"ScoreModel\.net\.kept is <class"),
        (Keeping({"a": 1}), r"ScoreModel\.net\.kept is \{'a': 1\}"),
        (Keeping([1, {2}]), r"ScoreModel\.net\.kept\[1\] is \{2\}"),
        (Keeping(torch.float16), r"ScoreModel\.net\.kept is torch\.float16"),
        (Keeping(float("inf")), r"ScoreModel\.net\.kept is inf, which JSON does not have"),
        (Keeping([0.0, float("nan")]), r"ScoreModel\.net\.kept\[1\] is nan"),
        (Keeping(torch.tensor([0.0, float("nan")])), r"ScoreModel\.net\.kept holds values that are not finite"),
    ],
)
def test_what_cannot_be_saved_is_said_by_name(net: nn.Module, words: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=words):
        sde.save(sde.ScoreModel(net, sde.VP()), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_only_score_models_are_saved(small: Callable, tmp_path: Path) -> None:
    exact = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
    for model in (small().given(), exact, NETS["fourier"](), None):
        with pytest.raises(TypeError, match=f"model must be a ScoreModel, got {type(model).__name__}"):
            sde.save(model, tmp_path / "x")  # type: ignore[arg-type]


# Damage.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small file: its header, with manifest and hash, and its tensors."""
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=2, depth=1, features=2), sde.VP())
    return sde.save(shuffled(model), tmp_path / "file.safetensors")


def test_truncated_at_every_hundredth_byte(file: Path) -> None:
    whole = file.read_bytes()
    assert len(whole) > 1500
    for size in [*range(0, len(whole), 100), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"truncated or no safetensors file .*: use an older one"):
            sde.load(file)
    for more in (b"\0", b"more", whole):
        file.write_bytes(whole + more)
        with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
            sde.load(file)


def test_every_byte_altered(file: Path) -> None:
    """Length, header, manifest, hash, tensors: one bit anywhere, and the file is refused."""
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    assert 8 < header < len(whole)
    for i in range(len(whole)):
        changed = bytearray(whole)
        changed[i] ^= 1 << (i % 8)
        file.write_bytes(changed)
        with pytest.raises(CheckpointError):
            sde.load(file)
    for start, end in ((0, 8), (8, header), (header, len(whole))):  # whole regions
        file.write_bytes(whole[:start] + bytes(255 - b for b in whole[start:end]) + whole[end:])
        with pytest.raises(CheckpointError):
            sde.load(file)
    file.write_bytes(whole)
    sde.load(file)


def test_tensors_exchanged(file: Path) -> None:
    """Numbers, names, shapes and dtypes are all in the hash."""
    manifest, tensors = read(file)
    with safe_open(file, framework="pt") as opened:
        meta = opened.metadata()

    def altered(changed: dict[str, Tensor], words: str = "was altered") -> None:
        save_file(changed, file, metadata=meta)
        with pytest.raises(CheckpointError, match=words):
            sde.load(file)

    a, b = "net.inward.weight", "net.outward.weight"
    altered({**tensors, a: tensors[b], b: tensors[a]})
    altered({**tensors, a: tensors[a].reshape(-1)})
    altered({**tensors, a: tensors[a].view(torch.int32)})
    altered({k: v for k, v in tensors.items() if k != a})
    altered({**tensors, "more": torch.zeros(1)})
    assert "20.0" in meta["sde"]
    meta = {"sde": meta["sde"].replace("20.0", "20.5")}
    altered(tensors)
    assert manifest["format"] == 1


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "other"
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"has no manifest: it was not written by sde\.save"):
        sde.load(path)
    save_file({"a": torch.zeros(3)}, path, metadata={"sde": "{}"})
    with pytest.raises(CheckpointError, match="was altered"):
        sde.load(path)
    for content in (b"", b"{}", os.urandom(5000), b"\xff" * 8, b"PK\x03\x04 a zip"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
            sde.load(path)


def test_a_later_format_is_said_to_be_one(tmp_path: Path, file: Path) -> None:
    manifest, tensors = read(file)
    write(file, {**manifest, "format": 99}, tensors)
    with pytest.raises(CheckpointError, match="has format 99, this version reads 1: update sde"):
        sde.load(file)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("by", ["pickle", "torch", "torch, old format"])
def test_a_pickle_is_not_opened(by: str, tmp_path: Path, points: Tensor, small: Callable) -> None:
    path, mark = tmp_path / "trap", tmp_path / "mark"
    if by == "pickle":
        path.write_bytes(pickle.dumps(Trap(mark)))
    else:
        torch.save({"model": Trap(mark)}, path, _use_new_zipfile_serialization=by == "torch")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        sde.load(path)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        sde.fit(small(), points, 1, checkpoint=path, progress=False)
    assert not mark.exists()
    if by == "pickle":  # it does spring
        pickle.loads(path.read_bytes())
        assert mark.exists()


def test_no_file_there(tmp_path: Path, file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*: it holds file\.safetensors$"):
        sde.load(tmp_path / "fiel.safetensors")
    (tmp_path / "a.pt").touch()
    (tmp_path / "file.safetensors.1234.part").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds file\.safetensors, a\.pt$"):
        sde.load(tmp_path / "fiel.safetensors")
    with pytest.raises(FileNotFoundError, match=r"it is a folder; it holds file\.safetensors, a\.pt$"):
        sde.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        sde.load(tmp_path / "nowhere" / "model.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="it holds no files"):
        sde.load(empty / "model.safetensors")
    for i in range(30):
        (empty / f"{i:02}.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"00\.safetensors, .*09\.safetensors and 20 more$"):
        sde.load(empty / "model.safetensors")


# Writing.


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(
    where: str, error: BaseException, file: Path, small: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, where, fail)
        with pytest.raises(type(error)):
            sde.save(small(), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_killed_in_a_write(file: Path, small: Callable) -> None:
    """Nothing runs any more when a process is killed: the old file is whole, and the rest is swept in time."""
    before = file.read_bytes()
    script = """
        import os, sys, sde
        os.fsync = lambda number: os._exit(9)
        sde.save(sde.ScoreModel(sde.nets.MLP(width=50), sde.VP()), sys.argv[1])
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(file)], check=False)
    assert done.returncode == 9
    assert file.read_bytes() == before
    sde.load(file)
    (part,) = set(file.parent.iterdir()) - {file}
    assert part.suffix == ".part"
    sde.save(small(), file)
    assert part.exists()  # a writer may still be at work on it
    os.utime(part, (time.time() - 7200,) * 2)
    sde.save(small(), file)
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_no_place(tmp_path: Path, small: Callable) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        sde.save(small(), tmp_path)


def test_the_same_model_makes_the_same_file(tmp_path: Path, small: Callable) -> None:
    a, b = (sde.save(small(), tmp_path / name).read_bytes() for name in "ab")
    assert a == b
    header = json.loads(a[8 : 8 + int.from_bytes(a[:8], "little")])["__metadata__"]["sde"]
    assert json.loads(header.partition(" ")[2])["model"]["args"]["sde"]["class"] == "VP"
