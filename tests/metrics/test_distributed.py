"""Two processes find what one does."""

import socket
import subprocess
import sys
from datetime import timedelta

import torch
from torch import distributed as dist

from sde.metrics import Moments, frechet_distance, gather, gather_moments, moments, shard


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (11, 1, 2, 2), generator=generator).byte()


def process(rank, port, folder):
    address, wait = f"tcp://127.0.0.1:{port}", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=wait)
    mine = shard(data())
    found = gather_moments(moments(torch.nn.Flatten(), mine, batch=4))
    alone = gather_moments(moments(torch.nn.Flatten(), data()) if rank else Moments())  # one of them saw nothing
    rows = gather(mine.flatten(1))
    torch.save((found.count, found.mean, found.cov, rows, alone.count, alone.cov), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    other = subprocess.Popen([sys.executable, __file__, "1", str(port), str(tmp_path)])
    try:
        process(0, port, tmp_path)
        assert other.wait(60) == 0
    finally:
        other.kill()
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = moments(torch.nn.Flatten(), data())
    for count, mean, cov, rows, alone, alone_cov in (one, two):
        assert count == alone == 11
        torch.testing.assert_close(mean, whole.mean)
        torch.testing.assert_close(cov, whole.cov)
        torch.testing.assert_close(alone_cov, whole.cov)
        assert torch.equal(rows, torch.cat([data()[0::2], data()[1::2]]).flatten(1))
    assert torch.equal(one[2], two[2])


def test_one_process_needs_nothing():
    x = torch.randn(10, 2)
    assert gather(x) is x
    assert torch.equal(shard(x), x)
    assert frechet_distance(gather_moments(Moments(x)), x) < 1e-9


if __name__ == "__main__":
    process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
