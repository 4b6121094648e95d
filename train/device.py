"""What a GPU needs to be told."""

import warnings

import torch
from torch import Tensor


def exact_float32() -> None:
    """Keeps cuDNN from rounding the operands of float32 convolutions to the 10 bits of TF32."""
    with warnings.catch_warnings():
        # torch 2.9 advises another setting, beside which torch.compile can't read this one.
        warnings.filterwarnings("ignore", "Please use the new API settings")
        torch.backends.cudnn.allow_tf32 = False


def send(values: Tensor, device: torch.device) -> Tensor:
    """From the CPU to the device, without waiting for a GPU to have taken it."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
