"""The device on which a network is trained, and settings of its process."""

import ctypes

import torch

from trainables.config.train import TrainConfig


def pick_device(name: str) -> torch.device:
    """Return the device called `cpu`, `cuda` or `auto` (CUDA if available); ValueError if `cuda` is not available."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device='cuda', but PyTorch sees no CUDA device on this machine; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_device(config: TrainConfig) -> torch.device:
    """Return the device on which `config` is trained; ValueError if it is not available or does not support `amp`."""
    device = pick_device(config.device)
    if config.amp == "fp16" and device.type != "cuda":
        raise ValueError("train.amp='fp16' needs a CUDA device: its scaled gradients have no CPU form; use bf16 or off")
    return device


def set_up_process(threads: int) -> None:
    """Set the number of threads, and make glibc keep large memory blocks.

    By default it maps each activation anew, which takes half of the time of a CPU epoch.
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
