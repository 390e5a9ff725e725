"""Manifests: objects as JSON and back; hostile ones, with a right hash, make one error and nothing else."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn

import sde
from sde.train import CheckpointError, describe, rebuild
from sde.train.checkpoint import read, write


def plain(name: str, **args: Any) -> dict[str, Any]:
    return {"class": name, "args": args}


NET = plain("MLP", dim=2, width=4, depth=1, features=4)
MODEL = plain("ScoreModel", net=NET, sde=plain("VP"))


def model(**changed: Any) -> dict[str, Any]:
    return plain("ScoreModel", **{"net": NET, "sde": plain("VP"), **changed})


@pytest.fixture
def forge(tmp_path: Path) -> Callable[[Any], Path]:
    """A file with a right hash, the tensors of a small model, and a manifest of any kind."""
    honest = sde.ScoreModel(sde.nets.MLP(dim=2, width=4, depth=1, features=4), sde.VP())
    tensors = honest.state_dict()

    def make(described: Any, **more: Any) -> Path:
        return write(tmp_path / "forged.safetensors", {"model": described, **more}, tensors)

    return make


def test_the_honest_one_loads(forge: Callable) -> None:
    assert sde.load(forge(MODEL)).net.width == 4


def test_describe_and_rebuild_are_inverse(forward: sde.ForwardSDE) -> None:
    if isinstance(forward, sde.FromCoefficients):
        with pytest.raises(TypeError, match=r"FromCoefficients\.f"):
            describe(forward)
        return
    made = json.loads(json.dumps(describe(forward)))
    again = rebuild(made, types=[type(forward)])
    assert type(again) is type(forward)
    assert describe(again) == made
    t = torch.linspace(forward.t_min, forward.t_max, 9, dtype=torch.float64)
    for a, b in zip(forward.rates_of_statistic(t), again.rates_of_statistic(t), strict=True):
        assert torch.equal(a, b)


HOSTILE: dict[str, Any] = {
    # names that are no part of a model
    "os.system": plain("os.system", command="mkdir HERE"),
    "system": plain("system", command="mkdir HERE"),
    "eval": model(net=plain("eval", source="1")),
    "builtins.exec": model(net=plain("builtins.exec", source="1")),
    "torch.nn.Linear": model(net=plain("torch.nn.Linear", in_features=2, out_features=2)),
    "dunder": model(net=plain("__class__")),
    "a target of huge shape": plain("Gaussian", mean=[0.0] * 30_000, cov=1.0),
    "a target for a net": model(net=plain("Gaussian", mean=[0.0], cov=1.0)),
    "an empirical target": plain("Empirical", data=[[0.0]]),
    "an abstract class": model(sde=plain("ScalarSDE")),
    "a level-1 SDE": model(sde=plain("BrownianMotion")),
    "a point": plain("Point", sde=plain("VP"), x=[0.0], t=0.0, x0=[0.0]),
    "a wrapper": plain("Reschedule", model=MODEL, sde=plain("EDM")),
    "functions by name": model(sde=plain("FromCoefficients", f="os.system", g="os.system")),
    "functions as objects": model(sde=plain("FromCoefficients", f=NET, g=NET)),
    "own by a bare name": model(net=plain("Own")),
    # things in the wrong place
    "no object": "VP",
    "a number": 3,
    "nothing": None,
    "a list": [MODEL],
    "an SDE alone": plain("VP"),
    "a net alone": NET,
    "an SDE for a net": model(net=plain("VP")),
    "a net for an SDE": model(sde=NET),
    "a model for a net": model(net=MODEL),
    "an object for a number": model(scale=plain("VP")),
    "an object for a name": model(param=NET),
    "an object for a mean": model(mean=plain("VP")),
    "a dict for an object": model(net={"dim": 2}),
    "a dict with more": model(net={**NET, "state": {}}),
    "a dict for a number": model(scale={}),
    "args as a list": model(net={"class": "MLP", "args": [2, 4]}),
    "args as nothing": model(net={"class": "MLP", "args": None}),
    "a class as a list": model(net={"class": ["MLP"], "args": {}}),
    "a class as an object": model(net={"class": NET, "args": {}}),
    "a class as nothing": model(net={"class": None, "args": {}}),
    "text for a number": model(sde=plain("VP", beta_max="20.0")),
    "a list for a number": model(sde=plain("VP", beta_max=[20.0])),
    "truth for a number": model(sde=plain("VP", beta_max=True)),
    "nothing for a number": model(sde=plain("VP", beta_max=None)),
    "a fraction for a size": model(net={**NET, "args": {**NET["args"], "width": 4.0}}),
    "truth for a size": model(net={**NET, "args": {**NET["args"], "depth": True}}),
    "a number for truth": model(coupled=1),
    "text in a mean": model(mean=["a", 0.0]),
    "truth in a mean": model(mean=[True, False]),
    "a ragged mean": model(mean=[[0.0, 0.0], [0.0]]),
    "text for a table": model(sde=plain("Tabulated", alphas_cumprod="0.9")),
    "a ragged table": model(sde=plain("Tabulated", alphas_cumprod=[0.9, [0.8]])),
    "a rising table": model(sde=plain("Tabulated", alphas_cumprod=[0.1, 0.9])),
    "a matrix of text": model(sde=plain("MatrixSDE", F=[["0"]], G=[[0]], embed=[1], cov0=[[1]])),
    "a matrix of lists": model(sde=plain("MatrixSDE", F=[[[0]]], G=[[0]], embed=[1], cov0=[[1]])),
    # arguments that are not there, or not possible
    "an unknown argument": model(sde=plain("VP", beta=1.0)),
    "self": model(sde=plain("VP", self=1.0)),
    "a dunder argument": model(sde=plain("VP", __init__=1.0)),
    "a missing argument": plain("ScoreModel", net=NET),
    "an unknown param": model(param="epsilon"),
    "a param that a matrix SDE has not": model(sde=plain("CLD"), param="score"),
    "a negative scale": model(scale=-1.0),
    "a negative beta": model(sde=plain("VP", beta_min=-1.0)),
    "odd features": model(net={**NET, "args": {**NET["args"], "features": 5}}),
    # sizes
    "a huge net": model(net=plain("MLP", dim=10**6, width=10**6)),
    "a large net": model(net=plain("MLP", dim=2, width=30_000, depth=1)),
    "a deep net": model(net=plain("MLP", dim=2, width=1, depth=10**6)),
    "a net beyond numbers": model(net=plain("MLP", dim=2, width=10**400)),
    "many features": model(net=plain("MLP", dim=2, width=4, depth=1, features=10**6)),
    "endless features": model(net=plain("MLP", dim=2, width=4, depth=1, features=10**12)),
    "a number beyond floats": model(sde=plain("VP", beta_max=10**400)),
    "another size": model(net={**NET, "args": {**NET["args"], "width": 5}}),
    "another depth": model(net={**NET, "args": {**NET["args"], "depth": 2}}),
    "a mean of another size": model(mean=[0.0, 0.0]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests_are_refused(
    case: str, forge: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = forge(HOSTILE[case])
    began = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        sde.load(path)
    assert time.perf_counter() - began < 5
    assert len(str(caught.value)) < 1000
    assert os.listdir(tmp_path) == ["forged.safetensors"]


class Own(nn.Module):
    """What only `types` admit."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width, self.layer = width, nn.Linear(2, width)


def test_types_admit_no_more_than_themselves(forge: Callable) -> None:
    """Not by a bare name, nor for what they are not."""
    with pytest.raises(CheckpointError, match="unknown class 'Own'"):
        sde.load(forge(model(net=plain("Own"))), types=[Own])
    with pytest.raises(CheckpointError, match="ScoreModel takes sde as ForwardSDE"):
        sde.load(forge(model(sde=plain("mine.Own"))), types=[Own])
    with pytest.raises(CheckpointError, match="Own takes width as int, the checkpoint gives '4'"):
        sde.load(forge(model(net=plain("mine.Own", width="4"))), types=[Own])
    with pytest.raises(CheckpointError, match="weights do not fit the network"):
        sde.load(forge(model(net=plain("mine.Own"))), types=[Own])
    with pytest.raises(CheckpointError, match=r"unknown class 'mine\.Owner'"):
        sde.load(forge(model(net=plain("mine.Owner"))), types=[Own])


class Raising(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "memory":
            raise MemoryError
        if how == "recursion":
            Raising("recursion")
        if how == "tensor":
            torch.empty(2**62)
        if how == "attribute":
            self.nothing  # noqa: B018
        raise ZeroDivisionError


@pytest.mark.parametrize("how", ["memory", "recursion", "tensor", "attribute", "other"])
def test_whatever_a_constructor_raises_is_one_error(how: str, forge: Callable) -> None:
    with pytest.raises(CheckpointError, match=r"Raising cannot be made from \{'how'"):
        sde.load(forge(model(net=plain("mine.Raising", how=how))), types=[Raising])


@pytest.mark.parametrize("bracket", ["list", "dict", "objects"])
@pytest.mark.parametrize("depth", [100, 10_000])
def test_deep_nesting(bracket: str, depth: int, forge: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written past json, whose writer would not go so deep."""
    inner = {
        "list": "[" * depth + "]" * depth,
        "dict": '{"a":' * depth + "1" + "}" * depth,
        "objects": '{"class":"ScoreModel","args":{"net":' * depth + "1" + "}}" * depth,
    }[bracket]
    honest = json.dumps
    monkeypatch.setattr(json, "dumps", lambda *a, **k: honest(*a, **k).replace('"MODEL"', inner))
    path = forge("MODEL")
    monkeypatch.undo()
    with pytest.raises(CheckpointError):
        sde.load(path)


@pytest.mark.parametrize("wrap", [lambda m: [m], lambda m: model(net=m), lambda m: model(mean=[m])])
def test_nesting_that_json_would_read(wrap: Callable) -> None:
    made: Any = 1
    for _ in range(5000):
        made = wrap(made)
    with pytest.raises(CheckpointError, match="nested deeper than 32"):
        rebuild(made)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "7", "null", "", "{", '{"format": 1, "model": NaN}', '{"format": 1}', "\\u0000"]
)
def test_manifests_that_are_none(text: str, forge: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda *a, **k: text)
    path = forge(MODEL)
    monkeypatch.undo()
    with pytest.raises(CheckpointError):
        sde.load(path)


def test_weights_of_another_kind(forge: Callable, tmp_path: Path) -> None:
    """Whole numbers in place of weights, or complex ones."""
    manifest, tensors = read(forge(MODEL))
    for kind in (torch.int64, torch.bool, torch.complex64):
        changed = {k: v.to(kind) for k, v in tensors.items()}
        path = write(tmp_path / "kinds", {"model": manifest["model"]}, changed)
        with pytest.raises(CheckpointError, match=r"weights do not fit .*kinds of number"):
            sde.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["class", "args", "net", "sde", "dim", "width", "x"]), inner, max_size=3)
    | st.builds(
        plain,
        st.sampled_from(["ScoreModel", "MLP", "VP", "CLD", "MatrixSDE", "Tabulated", "FromCoefficients", "Fourier"]),
    )
    | st.builds(lambda n, a: {"class": n, "args": a}, st.sampled_from(["ScoreModel", "MLP", "VP", "Tabulated", "Mlp"]),
                st.dictionaries(st.sampled_from(["net", "sde", "dim", "depth", "scale", "param", "mean"]), inner)),
    max_leaves=12,
)  # fmt: skip


@hypothesis.given(JSON)
@hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck))
def test_any_json_is_rebuilt_or_refused(made: Any) -> None:
    """Nothing but a CheckpointError comes of it."""
    weights = {"net.weight": torch.zeros(100)}
    with contextlib.suppress(CheckpointError):
        rebuild(made, weights=weights)


class Hinted(nn.Module):
    """Hints of every kind."""

    def __init__(
        self,
        sizes: tuple[int, ...] = (),
        mode: Literal["a", "b"] = "a",
        table: Tensor | None = None,
        inner: Sequence[nn.Module] = (),
        free: Any = None,
        loose=None,
        rate: "float | None" = None,
        act: "NotThere" = None,  # type: ignore[name-defined] # noqa: F821
    ) -> None:
        super().__init__()


class Known(nn.Module):
    """The same, where every hint resolves."""

    def __init__(
        self,
        sizes: tuple[int, ...] = (),
        mode: Literal["a", "b"] = "a",
        table: Tensor | None = None,
        inner: Sequence[sde.ForwardSDE] = (),
        free: Any = None,
        loose=None,
        act: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("args", "fits"),
    [
        ({"sizes": [1, 2, 3]}, True),
        ({"sizes": []}, True),
        ({"sizes": [1.0]}, False),
        ({"sizes": 3}, False),
        ({"mode": "b"}, True),
        ({"mode": "c"}, False),
        ({"table": [[1, 2.5], [3, 4]]}, True),
        ({"table": 1}, True),
        ({"table": None}, True),
        ({"table": "1"}, False),
        ({"table": [[1, "2"]]}, False),
        ({"inner": [plain("VP"), plain("CLD")]}, True),
        ({"inner": [plain("MLP")]}, False),
        ({"inner": plain("VP")}, False),
        ({"free": [1, "a", None]}, True),
        ({"loose": "anything"}, True),
        ({"act": None}, True),
        ({"act": "torch.tanh"}, False),
        ({"act": plain("VP")}, False),
    ],
)
def test_arguments_are_checked_by_their_hints(args: dict[str, Any], fits: bool) -> None:
    if fits:
        rebuild(plain("mine.Known", **args), types=[Known])
        rebuild(plain("mine.Hinted", **{k: v for k, v in args.items() if k != "inner"}), types=[Hinted])
    else:
        with pytest.raises(CheckpointError, match=f"Known takes {next(iter(args))} as .*the checkpoint gives"):
            rebuild(plain("mine.Known", **args), types=[Known])
