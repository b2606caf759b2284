"""The device on which a network is trained, and settings of the process that trains it."""

import ctypes

import torch

from trainables.config.train import TrainConfig


def pick_device(name: str) -> torch.device:
    """Return the device called `cpu`, `cuda` or `auto` (CUDA if available); ValueError if `cuda` is not available."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device='cuda', but PyTorch sees no CUDA device on this machine; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_device(config: TrainConfig) -> torch.device:
    """Return the device of `config.device`; ValueError if it is not available or does not support `config.amp`."""
    device = pick_device(config.device)
    if config.amp == "fp16" and device.type != "cuda":
        raise ValueError("train.amp='fp16' needs a CUDA device, but the training is on the CPU; use bf16 or off")
    return device


def set_up_process(threads: int) -> None:
    """Set the number of CPU threads of this process, and make glibc keep large memory blocks.

    By default, glibc maps new memory for each activation, which takes half of the time of an epoch on a CPU.
    """
    torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library, which has no such options
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    for option, value in (
        (m_mmap_threshold, 1 << 30),
        (m_trim_threshold, (1 << 31) - 1),
        (m_top_pad, 1 << 28),
    ):
        libc.mallopt(option, value)
