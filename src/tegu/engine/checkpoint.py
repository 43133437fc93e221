"""Checkpoints: one safetensors file, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tegu.errors import InputError
from tegu.files import expanded, write_atomically

FORMAT = "tegu-checkpoint-1"
LARGEST = 16 << 30  # bytes that a checkpoint may have


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped.

    Args:
        params: what is meta-learned, the carried inner optimiser state included.
        outer: state of the outer optimiser; empty where the learner has its own rule.
        iteration: meta-iterations done. Episodes and random numbers are functions
            of this count and the seed, so there is no generator state to keep.
        seed: of the run.
        recipe: digest of the settings that the run was started with.
        notes: facts that do not bear on what follows, such as seconds spent.
    """

    params: dict[str, Tensor]
    outer: dict[str, Tensor]
    iteration: int
    seed: int
    recipe: str
    notes: dict[str, Any]

    def digest(self) -> str:
        """SHA-256 of everything that decides how the run goes on; `notes` do not."""
        head = [self.iteration, self.seed, self.recipe]
        total = hashlib.sha256(json.dumps(head).encode())
        for kind, tensors in (("params", self.params), ("outer", self.outer)):
            for name, tensor in sorted(tensors.items()):
                total.update(f"{kind}/{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                total.update(flat.view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> str:
    """Writes a checkpoint and returns its digest."""
    path = expanded(path)
    digest = checkpoint.digest()
    head = {
        "format": FORMAT,
        "iteration": checkpoint.iteration,
        "seed": checkpoint.seed,
        "recipe": checkpoint.recipe,
        "notes": checkpoint.notes,
        "digest": digest,
    }
    # Copies, since safetensors refuses tensors that share memory.
    copy = partial(torch.clone, memory_format=torch.contiguous_format)
    tensors = {f"params/{k}": copy(v.detach()) for k, v in checkpoint.params.items()}
    tensors |= {f"outer/{k}": copy(v.detach()) for k, v in checkpoint.outer.items()}
    write_atomically(path, save(tensors, {"tegu": json.dumps(head)}))
    return digest


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint and checks it against its digest.

    Raises:
        InputError: there is no such file, it is not a checkpoint of tegu, it is
            cut short, or a byte of it has changed.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(
            f"no checkpoint at {path}",
            "a file that a run or a `save` has written",
            "Check the path; a run that has kept nothing yet is started without --resume.",
        )
    todo = "Take another copy, or train or adapt again."
    if path.stat().st_size > LARGEST:
        raise InputError(
            f"{path} has {path.stat().st_size:,} bytes", f"at most {LARGEST:,} bytes", todo
        )
    try:
        # In one piece: safe_open opens a file twice, and a run may write the next one in between.
        data = path.read_bytes()
        tensors = load(data)  # which looks at the whole header
        length = int.from_bytes(data[:8], "little")
        head = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["tegu"])
        if head["format"] != FORMAT:
            raise KeyError(head["format"])
        halves = {
            kind: {k.partition("/")[2]: v for k, v in tensors.items() if k.startswith(f"{kind}/")}
            for kind in ("params", "outer")
        }
        checkpoint = Checkpoint(
            iteration=int(head["iteration"]),
            seed=int(head["seed"]),
            recipe=str(head["recipe"]),
            notes=dict(head["notes"]),
            **halves,
        )
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        OSError,
        OverflowError,
        RecursionError,
    ) as failure:
        raise InputError(
            f"{path} is cut short or not a checkpoint ({type(failure).__name__})",
            "a whole file that tegu has written",
            todo,
        ) from failure
    if checkpoint.digest() != head.get("digest"):
        raise InputError(
            f"{path} does not match its own digest", "a file that nobody has changed", todo
        )
    return checkpoint
