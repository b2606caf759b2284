"""The device of a training, its mixed precision, the threads and memory of its process, and whether memory is full."""

import ctypes

import torch

from trainables.config.train import TrainConfig

HOST_REMEDY = "Free memory of the machine, or reduce train.batch_size or the number of trials that run at a time"
GPU_REMEDY = "Reduce train.batch_size, or give each trial a larger share of the GPU with --gpus-per-trial"


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


def precision(amp: str, device: torch.device) -> str:
    """Return the mixed precision off, bf16 or fp16 for the value `amp` of train.amp; auto is bf16 on CUDA, else off."""
    if amp == "auto":
        return "bf16" if device.type == "cuda" else "off"
    return amp


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """Return the context in which a network on `device` computes with the mixed precision `amp` (train.amp)."""
    chosen = precision(amp, device)
    return torch.autocast(device.type, torch.float16 if chosen == "fp16" else torch.bfloat16, enabled=chosen != "off")


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


def out_of_memory(error: BaseException) -> str | None:
    """Return a message of one line if `error` says that the memory of the machine or of its GPU is full, else None.

    PyTorch reports a full memory of the machine as a RuntimeError, which has the text "can't allocate memory".
    """
    lines = str(error).strip().splitlines()
    detail = lines[0][:200] if lines else "no further detail"
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {detail}. {GPU_REMEDY}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return f"out of memory: {detail}. {HOST_REMEDY}"
    return None
