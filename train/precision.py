"""float32 as such on a GPU too."""

import warnings

import torch


def exact_float32() -> None:
    """Keeps cuDNN from rounding the operands of convolutions to the 10 bits of TF32."""
    with warnings.catch_warnings():
        # torch 2.9 advises another setting, beside which torch.compile can't read this one.
        warnings.filterwarnings("ignore", "Please use the new API settings")
        torch.backends.cudnn.allow_tf32 = False
