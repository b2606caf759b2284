"""Tell from an exception whether the memory of the machine or of its GPU is full."""

import torch

HOST_REMEDY = "Free memory of the machine, or reduce train.batch_size or the number of trials that run at a time"
GPU_REMEDY = "Reduce train.batch_size, or give each trial a larger share of the GPU with --gpus-per-trial"


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
