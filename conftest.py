"""What every test and every docstring's example shares: one thread, no window, one seed, figures closed."""

import os
import signal
import sys
from collections.abc import Iterator

# Threads and backend are read at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

torch.set_num_threads(1)

# A shell starts jobs in the background deaf to Ctrl-C, which some tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """Give networks the same weights in every run of a test, and close the figures it drew."""
    torch.manual_seed(0)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
