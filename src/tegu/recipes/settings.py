"""What a recipe holds: the settings of its sections, each with its default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from tegu.networks import Conv4Network, Network
from tegu.sources import Glyphs, Source


@dataclass(frozen=True)
class Train:
    """Meta-learning."""

    meta_iterations: int = 1000
    seconds: float = 0.0  # end after so much training, if that comes first; 0: no limit
    meta_batch: int = 5
    outer_lr: float = 1.0
    outer_lr_final: float = 0.0
    outer_schedule: str = "linear"  # linear or cosine: the way from the first to the last
    outer_optimiser: str = "adam"  # adam or muon, where the learner has no rule of its own
    weight_decay: float = 0.0  # with muon
    n_way: int = 5
    n_shot: int = 10
    n_query: int = 0
    batch: int = 64  # examples, where a learner is pre-trained on batches of all classes
    seed: int = 0
    validate_every: int = 0
    validate_episodes: int = 100
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Engine:
    """How fast it runs, and in which arithmetic."""

    vectorise: str = "auto"  # auto, vmap or loop
    compile: str = "auto"  # auto, on or off
    precision: str = "fp32"  # fp32, bf16 or auto: bf16 where the machine is faster in it
    cuda_graphs: bool = True  # on a GPU, replay what is done again and again as CUDA graphs
    checkpoint: bool = False  # run inner steps again on the way back, to save memory
    at_once: int = 0  # tasks of a meta-batch side by side; 0: all. Fewer take less memory
    device: str = "cpu"
    threads: int = 0  # 0: torch's own choice
    workers: int = 0  # processes that draw tasks ahead of the work; 0: none


@dataclass(frozen=True)
class Cell:
    """One figure of a result, and the published one beside it."""

    n_way: int = 0  # 0: as in training
    n_shot: int = 1
    n_query: int = 1
    normalisation: str = "support"
    eval_batch: int = 0  # 0: the learner's
    published: float = -1.0  # below 0: none
    source: str = ""


@dataclass(frozen=True)
class Evaluate:
    """Task learning on unseen tasks."""

    episodes: int = 1000
    at_once: int = 50
    seed: int = 1
    split: str = "meta_test"
    cells: tuple[Cell, ...] = (Cell(),)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, every default filled in."""

    name: str
    title: str = ""
    source: str = ""
    beside: tuple[str, ...] = ()  # recipes whose figures belong into the same result
    data: Source = field(default_factory=Glyphs)
    model: Network = field(default_factory=Conv4Network)
    learner: dict[str, Any] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    engine: Engine = field(default_factory=Engine)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def plain(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only, as JSON keeps them."""
        out: dict[str, Any] = _plain(dataclasses.asdict(self))
        for section in ("data", "model"):
            out[section] = {"name": getattr(self, section).name, **out[section]}
        return out


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
