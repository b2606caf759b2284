"""The device and the process that a network is trained in."""

import ctypes

import torch

from trainables.config.train import TrainConfig


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; ValueError when `cuda` is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device='cuda', but PyTorch sees no CUDA device on this machine; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_device(config: TrainConfig) -> torch.device:
    """Where `config` is trained; ValueError when it cannot be there."""
    device = pick_device(config.device)
    if config.amp == "fp16" and device.type != "cuda":
        raise ValueError("train.amp='fp16' needs a CUDA device: its scaled gradients have no CPU form; use bf16 or off")
    return device


def set_up_process(threads: int) -> None:
    """Threads, and glibc told to keep large blocks: mapping each activation anew costs half of a CPU epoch."""
    torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library: nothing to tell it
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    for option, value in (
        (m_mmap_threshold, 1 << 30),
        (m_trim_threshold, (1 << 31) - 1),
        (m_top_pad, 1 << 28),
    ):
        libc.mallopt(option, value)
