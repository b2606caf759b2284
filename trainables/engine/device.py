"""Selection of the training device; number of CPU threads and memory options of the process that trains."""

import ctypes

import torch

from trainables.config.train import TrainConfig


def pick_device(name: str) -> torch.device:
    """Return the PyTorch device for `name`: cpu, cuda, or auto (CUDA if available, else the CPU).

    Raise ValueError if `name` is cuda and PyTorch sees no CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device='cuda', but PyTorch sees no CUDA device on this machine; set it to cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_device(config: TrainConfig) -> torch.device:
    """Return the PyTorch device for `config.device`.

    Raise ValueError if the device is not available, or if `config.amp` is fp16 and the device is a CPU.
    """
    device = pick_device(config.device)
    if config.amp == "fp16" and device.type != "cuda":
        raise ValueError("train.amp='fp16' needs a CUDA device, but the training is on the CPU; use bf16 or off")
    return device


def set_up_process(threads: int) -> None:
    """Set the number of PyTorch's CPU threads to `threads`, and make glibc reuse large blocks of freed memory.

    By default, glibc requests new memory from the system for each activation of the network. On a CPU, this takes half
    of the time of an epoch.
    """
    torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # the C library is not glibc: it has no such options
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    for option, value in (
        (m_mmap_threshold, 1 << 30),
        (m_trim_threshold, (1 << 31) - 1),
        (m_top_pad, 1 << 28),
    ):
        libc.mallopt(option, value)
