import pytest

from sde.cli import main


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """The command line in a folder of its own: words → (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        status = main([*words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


SMALL = ("steps=6", "batch=16", "every=2", "model.width=8", "model.depth=1", "data.n=50")


@pytest.fixture
def small():
    """Overrides that make a training run of a moment."""
    return SMALL
