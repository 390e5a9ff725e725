"""Killed at every write point: nothing is lost, and what goes on makes the bits of what was never killed.

One child process imports torch and forks for each kill, so that a kill costs a training and no import.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = textwrap.dedent(
    """
    import os, shutil, signal, sys
    from pathlib import Path

    import torch
    from torch import nn

    import sde

    torch.set_num_threads(1)
    os.chdir(sys.argv[1])


    class Net(nn.Module):
        "With dropout, which draws from torch's own generator, and statistics."

        def __init__(self, classes: int = 3) -> None:
            super().__init__()
            self.classes = classes
            self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
            self.label, self.drop, self.norm = nn.Embedding(classes + 1, 4), nn.Dropout(0.3), nn.BatchNorm2d(4)

        def forward(self, x, c, label):
            h = self.norm(self.first(x)) + self.label(label)[:, :, None, None] + c[:, None, None, None]
            return self.last(self.drop(torch.tanh(h)))


    data = torch.randint(256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    label = torch.arange(40) % 3


    def train(folder, seed=0):
        "The same call whatever happened before."
        torch.manual_seed(seed)
        model = sde.ScoreModel(Net(), sde.VP(), mean=0.0, scale=0.58)
        with torch.no_grad():  # weights that no draw depends on
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 4)
        history = sde.fit(
            model, data, 36, cond={"label": label}, batch=8, lr=1e-2, warmup=4, every=7, save_every=13, drop=0.2,
            flip=True, dequantize=1, accumulate=2, clip=1.0, precision=PRECISION, ema=sde.train.Power((0.05, 0.1), 2),
            checkpoint=folder / "model.safetensors", progress=False, generator=torch.Generator().manual_seed(2),
        )
        return history


    def content(folder):
        "Every file, less the seconds that a history tells."
        from sde.train.checkpoint import read

        files = {}
        for path in sorted(folder.rglob("*.safetensors")):
            manifest, tensors = read(path)
            for told in ("seconds", "throughput"):
                manifest.get("run", {}).get("history", {}).pop(told, None)
            raw = {k: v.reshape(-1).view(torch.uint8).numpy().tobytes() for k, v in tensors.items()}
            bits = {k: (v.dtype, v.shape, raw[k]) for k, v in tensors.items()}
            files[path.relative_to(folder).as_posix()] = (manifest, bits)
        return files


    def counted(limit):
        "Count what a write is made of, and be killed before the one of number `limit`."
        count = [0]

        def count_up(function):
            def call(*args, **kwargs):
                count[0] += 1
                if count[0] == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in ("fsync", "replace", "open", "unlink"):
            setattr(os, name, count_up(getattr(os, name)))
        Path.open = count_up(Path.open)
        Path.unlink = count_up(Path.unlink)
        return count


    def killed(folder, limit, seed):
        child = os.fork()
        if not child:
            counted(limit)
            train(folder, seed)
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])


    whole = Path("whole")
    whole.mkdir()
    train(whole)
    expected = content(whole)
    assert len(expected) == 5, list(expected)  # the checkpoint, and two averages at two steps

    limit, kills = 1, 0
    while True:
        folder = Path(f"killed-{limit}")
        folder.mkdir()
        if not killed(folder, limit, 0):
            break
        kills += 1
        killed(folder, 2, 9)  # and once more, soon after it went on; another seed of torch's own is of no account
        train(folder, 9 if (folder / "model.safetensors").exists() else 0)
        assert content(folder) == expected, limit
        shutil.rmtree(folder)
        limit += 1
    print(kills)
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_killed_at_every_write_point(precision: str, tmp_path: Path) -> None:
    """Bytes, flips, hidden labels, parts, clipping, dropout, two averages and their snapshots; at odd intervals."""
    script = SCRIPT.replace("PRECISION", repr(precision))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True, timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 3 * 7  # part file, flush, rename, for three checkpoints and four snapshots
