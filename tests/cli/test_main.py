"""The command line as a whole: help, version, list, and what is no command."""

import shutil
import subprocess
import sys

import pytest
import torch

import sde
from sde.cli import COMMANDS, main


def test_version(cli):
    assert cli("--version") == (0, f"sde {sde.__version__}\n", "")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(cli, words):
    status, out, err = cli(*words)
    assert (status, err) == (0, "")
    assert all(f"sde {command}" in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("command", "key"), [("train", "--steps"), ("sample", "--eta"), ("plot", "--what"), ("demo", "--smoke")]
)
def test_help_of_a_command_names_its_keys(cli, command, key):
    status, out, _ = cli(command, "--help")
    assert status == 0
    assert key in out


def test_list_says_what_there_is(cli):
    status, out, _ = cli("list")
    assert status == 0
    for name in (
        "EDM",
        "sigma_max=80",
        "PredictorCorrector",
        "swiss_roll",
        "MLP",
        "optimal_transport",
        "karras",
        "digits",
    ):
        assert name in out


@pytest.mark.parametrize("word", ["sde", "sdes", "SDEs"])
def test_list_of_one_kind(cli, word):
    status, out, _ = cli("list", word)
    assert status == 0
    assert "ThirdOrderLangevin" in out
    assert "swiss_roll" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trian"],
            "sde: unknown command 'trian', did you mean train? There are: demo, train, sample, restore, plot, list",
        ),
        (["list", "solvr"], "sde: unknown kind 'solvr', did you mean solver?"),
        (["sample"], "sde: which checkpoint? There is none. `sde train moons` makes one"),
        (["sample", "no.safetensors"], "sde: unknown checkpoint 'no.safetensors'. There is none"),
        (["plot", "no.npz"], "sde: unknown file 'no.npz'. There is none"),
        (["demo", "moons"], "sde: sde demo takes `images` or nothing, and key=value, not 'moons'"),
        (["demo", "smok=true"], "sde: unknown key 'smok', did you mean smoke?"),
        (["train", "moons", "device=abacus"], "sde: device 'abacus' cannot be used here"),
    ],
)
def test_mistake_is_one_message_and_status_2(cli, words, message):
    status, out, err = cli(*words)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_unknown_flag_is_refused_with_a_suggestion(cli):
    status, out, err = cli("train", "moons", "--stepz", "5")
    assert status == 2
    assert "--steps" in out + err


def test_traceback_for_who_asks(cli, monkeypatch):
    monkeypatch.setenv("SDE_TRACEBACK", "1")
    with pytest.raises(Exception, match="unknown command"):
        main(["trian"])


def test_module_is_the_command():
    words = [sys.executable, "-m", "sde", "nonsense"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sde: unknown command 'nonsense'")


def test_one_thread_unless_the_environment_says(cli, monkeypatch):
    seen = []
    monkeypatch.setattr("sde.cli.listing.listing", lambda argv: seen.append(torch.get_num_threads()) or 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert cli("list")[0] == 0
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert cli("list")[0] == 0
        assert (seen, torch.get_num_threads()) == ([1, 2], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell with pipes")
def test_a_reader_who_leaves_early_is_no_error():
    command = f"{sys.executable} -m sde list | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
