"""What the folder of a training run holds, and whether two of them hold the same."""

import json
from pathlib import Path
from typing import Any

import torch

from train.checkpoint import LAST_FILE, load_checkpoint
from train.loop import LOG_FILE


def entries(out: Path) -> list[dict]:
    """The log, without what the clock decides."""
    lines = (out / LOG_FILE).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_state(a: Path, b: Path) -> None:
    left, right = (load_checkpoint(out / LAST_FILE) for out in (a, b))
    assert left.keys() == right.keys()
    for name in left.keys() - {"seconds"}:
        assert_equal(left[name], right[name])


def assert_equal(a: Any, b: Any) -> None:
    """Bit-identical, through all nesting."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
