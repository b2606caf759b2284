"""A strided 1x1 branch with one input channel equals PyTorch's convolution and writes within its memory only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ascmodels.students.repconv import RepConv2d

# glibc's heap checker, which aborts a process whose heap is damaged
CHECKER = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")
TRAINING = """
import torch
from ascmodels.students.repconv import RepConv2d
torch.set_num_threads(1)
for _ in range(20):
    block = RepConv2d(1, 8, ["1x1", "3x3"], (2, 2)).to(memory_format=torch.channels_last)
    block(torch.randn(30, 1, 32, 32)).square().sum().backward()
    kept = [torch.zeros(n) for n in (3, 10, 100, 1000)]
"""


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1), (1, 2)])
def test_strided_pointwise_branch_is_pytorchs_convolution(stride: tuple[int, int]) -> None:
    block = RepConv2d(3, 8, ["1x1"], stride).eval()
    branch = block.branches["1x1"]
    assert isinstance(branch, nn.Sequential)
    plain = nn.Sequential(nn.Conv2d(3, 8, 1, stride, bias=False), branch[1])
    plain[0].load_state_dict(branch[0].state_dict())
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(block(x), plain(x), atol=1e-6)
    assert torch.allclose(block.fuse()(x), plain(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not CHECKER.exists(), reason="glibc's heap checker is needed")
def test_training_leaves_the_heap_whole() -> None:
    environment = os.environ | {"LD_PRELOAD": str(CHECKER), "MALLOC_CHECK_": "3"}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
