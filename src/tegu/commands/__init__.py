"""What each command does: a document for programs and a text for people."""

from __future__ import annotations

from collections.abc import Callable

from tegu.commands.contests import bench_recipe, compare_learners, leaderboard
from tegu.commands.predictions import predict
from tegu.commands.quickstart import quickstart
from tegu.commands.runs import evaluate_run, info, list_recipes, reproduce, train
from tegu.commands.shared import Outcome
from tegu.commands.tables import causal, pack

COMMANDS: dict[str, Callable[..., Outcome]] = {
    "quickstart": quickstart,
    "train": train,
    "evaluate": evaluate_run,
    "predict": predict,
    "reproduce": reproduce,
    "leaderboard": leaderboard,
    "compare": compare_learners,
    "bench": bench_recipe,
    "causal": causal,
    "pack": pack,
    "recipes": list_recipes,
    "info": info,
}
