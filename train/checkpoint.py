"""Training state on disk: written whole or not at all, read back exactly."""

import os
from pathlib import Path

import torch

LAST_FILE = "last.pt"


class CheckpointError(Exception):
    """A checkpoint can't be written or doesn't fit; the text says why and what to do."""


def save_checkpoint(state: dict, path: Path) -> None:
    """Writes beside `path`, syncs, then takes its place, so that a crash leaves the old or the new.

    Args:
        state: nested dicts and lists of tensors, numbers, strings.
        path: e.g. `run/last.pt`.

    Raises:
        CheckpointError: the file can't be written; the old checkpoint is untouched.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    # torch reports a full disk as RuntimeError.
    except (OSError, RuntimeError) as exc:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"can't write {path}: {exc}. The last good one is kept.") from exc


def load_checkpoint(path: Path) -> dict:
    """Reads what `save_checkpoint` wrote, to the CPU; runs no code from the file.

    Raises:
        CheckpointError: the file can't be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as exc:  # a damaged file surfaces as any of a dozen types
        raise CheckpointError(f"{path} is not a readable checkpoint: {exc}") from exc
