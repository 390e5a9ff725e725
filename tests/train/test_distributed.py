"""Two processes on the CPU train as one: DDP and FSDP2, checkpoints, averages, callbacks that sample, resumption."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sde
from sde.train.distributed import Together, team

SCRIPT = textwrap.dedent(
    """
    import os, shutil, sys
    from pathlib import Path

    import torch
    from accelerate import Accelerator, PartialState, debug_launcher
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    import sde

    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    data = torch.randint(256, (60, 1, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    label = torch.arange(60) % 3


    def made(rank=0):
        torch.manual_seed(rank)  # other weights in every process: the first one's count
        model = sde.ScoreModel(sde.nets.MLP(9, 15, 1, classes=3, features=8), sde.VP(), scale=0.58)
        torch.nn.init.normal_(model.net.outward.weight, std=0.3)  # at zero, gradients stop there
        return model


    def train(folder, stop=None, rank=0, **kwargs):
        model, steps = made(rank), []

        def look(step):
            steps.append(step.main)
            with step.averaged() as now:  # what a forward pass without a backward leaves must not stay
                x = sde.sample(now, (2, 1, 3, 3), steps=2, generator=torch.Generator().manual_seed(0), progress=False)
            assert bool(torch.isfinite(x).all())
            if step.step == stop:
                raise InterruptedError

        generator = torch.Generator().manual_seed(2 + rank)  # the first one's counts, too
        history = sde.fit(
            model, data, 12, cond={"label": label}, batch=16, lr=3e-2, warmup=0, decay="constant", every=4,
            save_every=3, clip=0.5, drop=0.2, flip=True, accumulate=2, ema=sde.train.Power((0.2, 0.1), 2),
            checkpoint=Path(folder) / "model.safetensors", callback=look, progress=False, generator=generator, **kwargs,
        )
        return model, history, steps


    def prepared(kind):
        accelerator = Accelerator(cpu=True)
        if kind == "FSDP2":  # accelerate does not offer it on a CPU, torch does
            accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, cpu_ram_efficient_loading=False, auto_wrap_policy="no_wrap"
            )
            for state in (accelerator.state, PartialState()):
                state.distributed_type = DistributedType.FSDP
        return accelerator


    def child(kind):
        rank = torch.distributed.get_rank()
        kwargs = {} if kind == "found" else {"accelerator": prepared(kind)}
        try:
            train(f"{kind}-stopped", stop=8, rank=rank, **kwargs)
        except InterruptedError:
            if rank == 0:
                shutil.copytree(f"{kind}-stopped", "mixed")
        train(f"{kind}-stopped", rank=rank, **kwargs)
        model, history, steps = train(kind, rank=rank, **kwargs)
        assert steps == [rank == 0] * 3
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        sharded = [p.to_local().numel() < p.numel() for p in model.parameters() if hasattr(p, "to_local")]
        assert any(sharded) == (kind == "FSDP2")
        if rank == 0:
            assert sde.train.describe(model) == sde.train.describe(made())
        torch.save({"weights": [p.detach() for p in whole], "loss": history.loss}, f"{kind}-{rank}.pt")


    def close(a, b, what):
        for p, q in zip(a, b, strict=True):
            assert torch.allclose(p, q, atol=2e-6), (what, float((p - q).abs().max()))


    def stored(folder):
        return list(sde.load(f"{folder}/model.safetensors").parameters())


    model, history, _ = train("one")
    before = torch.cat([p.detach().reshape(-1) for p in made().parameters()])
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert float((after - before).abs().max()) > 0.05
    for kind in sys.argv[2:]:
        debug_launcher(child, (kind,))
        for rank in (0, 1):
            left = torch.load(f"{kind}-{rank}.pt")
            close(left["weights"], model.parameters(), kind)
            assert all(abs(a - b) < 1e-5 for a, b in zip(left["loss"], history.loss, strict=True)), kind
        close(stored(kind), model.parameters(), f"{kind} checkpoint")
        close(stored(f"{kind}-stopped"), model.parameters(), f"{kind} resumed")
        second, wanted = (sde.train.reconstruct(f"{k}/model.safetensors", 0.1) for k in (kind, "one"))
        close(second.parameters(), wanted.parameters(), f"{kind} second average")
        alone, again, _ = train("mixed")  # what several have begun, one goes on with
        close(alone.parameters(), model.parameters(), f"{kind} gone on with alone")
        assert again.step == history.step
        assert all(abs(a - b) < 1e-5 for a, b in zip(again.loss, history.loss, strict=True)), kind
    print("equal")
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher forks")
@pytest.mark.parametrize("kind", ["found", "FSDP2", pytest.param("DDP", marks=pytest.mark.slow)])
def test_two_processes_are_one(kind: str, tmp_path: Path) -> None:
    """Weights, averages, losses and files; interrupted and resumed too. "found": DDP, as under `accelerate launch`."""
    pytest.importorskip("accelerate")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), kind], check=False, capture_output=True, text=True, timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["equal"]


def test_one_process_needs_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone: Any = SimpleNamespace(num_processes=1)
    for accelerator in (None, alone):
        assert (team(accelerator).size, team(accelerator).main, team(accelerator).share(8)) == (1, True, None)


def test_accelerate_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install \"sde\[images\]\""):
        team(None)


def accelerator(**changed: Any) -> Any:
    kind = SimpleNamespace(name=changed.pop("kind", "MULTI_GPU"))
    given = {"mixed_precision": "no", "num_processes": 2, "process_index": 1, "is_main_process": False}
    given |= {"device": torch.device("cpu"), "distributed_type": kind, "is_fsdp2": True}
    return SimpleNamespace(**{**given, **changed})


def test_shares_are_equal_and_cover_the_batch() -> None:
    shares = [Together(accelerator(num_processes=3, process_index=i)).share(12) for i in range(3)]
    assert [i for s in shares for i in range(12)[s]] == list(range(12))


def test_what_is_refused(small: Any, points: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="mixed_precision='bf16': make it with \"no\", and pass precision="):
        Together(accelerator(mixed_precision="bf16"))
    with pytest.raises(ValueError, match="use fsdp_version=2"):
        Together(accelerator(kind="FSDP", is_fsdp2=False))
    with pytest.raises(ValueError, match="batch must divide by 2 processes, got 15"):
        sde.fit(small(), points, 1, batch=15, accelerator=accelerator(), progress=False)
    with pytest.raises(ValueError, match="batch must divide by 2 processes of 3 parts, got 9"):
        sde.fit(small(), points, 1, batch=9, accumulate=3, accelerator=accelerator(), progress=False)
    with pytest.raises(ValueError, match="does not go with FSDP2: pass precision='bfloat16'"):
        sde.fit(small(), points, 1, precision="float16", accelerator=accelerator(kind="FSDP"), progress=False)
