"""What each command takes: its arguments, and what the help says of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from tegu.errors import InputError
from tegu.files import expanded

COMMANDS = {
    "quickstart": "see meta-learning work, in about three minutes and with nothing to download",
    "train": "meta-learn from a recipe, or from settings of your own",
    "evaluate": "learn unseen tasks with what a run meta-learned, and score them",
    "predict": "learn a task from your files with what a run meta-learned, and name other files",
    "reproduce": "train and evaluate a recipe from start to end",
    "leaderboard": "compare all learners of classes at one budget",
    "compare": "put two learners or more side by side: ease, speed, accuracy, growth",
    "bench": "measure which way of running a recipe is fastest on this machine",
    "causal": "what causes what among the columns of your file, and how sure that is",
    "pack": "write a folder of your images as arrays that are read from disk row by row",
    "recipes": "list the recipes, or show one",
    "info": "show what a run holds",
}

EPILOG = """\
examples:
  tegu quickstart
  tegu train reptile-glyphs --run runs/mine --set learner.inner_lr=0.002
  tegu train --learner protonet --data omniglot --data-dir ~/data --run runs/omniglot
  tegu train reptile-glyphs --run runs/mine --resume
  tegu evaluate runs/mine --episodes 2000 --json
  tegu predict runs/photos few-examples new/*.jpg --save birds.safetensors
  tegu predict runs/photos birds.safetensors more/*.jpg --json
  tegu reproduce reptile-omniglot-5way
  tegu leaderboard --data glyphs --seconds 60
  tegu bench reptile-omniglot-5way --data-dir ~/data
  tegu causal mine.csv --environment site
  tegu causal many-columns.csv --environment treatment --baseline none
  tegu train --learner protonet --data folder --set data.path=photos --run runs/photos
  tegu pack photos photos-84 --size 84

Every setting of a recipe but evaluate.cells can be replaced with --set SECTION.KEY=VALUE;
`tegu recipes NAME` shows them all. Results go to standard output, everything else to standard
error.
`torchrun --standalone --nproc-per-node N -m -- tegu ...` splits train, evaluate and reproduce over
N processes.
Exit codes: 0 done, 2 bad input, 130 or 143 stopped (train, reproduce and quickstart go on with
--resume).
"""
DATA_DIR = "folder of data sets (default: $TEGU_DATA, the cache folder, then a download)"


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)  # a later option may share the letters

    def error(self, message: str) -> NoReturn:
        raise InputError(message, "arguments as in the help", f"See `{self.prog} --help`.")


def parser_of_commands() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="tegu",
        description="Meta-learning: train once over many tasks, then learn a new one from a few "
        "examples.",
        epilog=EPILOG,
        formatter_class=shape,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    made = {
        name: commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in COMMANDS.items()
    }
    for name in COMMANDS:
        made[name].add_argument(
            "--json", action="store_true", help="print one JSON document on standard output"
        )
    others = {
        "evaluate": "of [evaluate] or [engine], data.path, or what training made no use of",
        "compare": "of all the learners, data.path say",
    }
    for name in ("quickstart", "train", "reproduce", "evaluate", "bench", "compare"):
        made[name].add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            help=f"replace a setting {others.get(name, 'of the recipe')}; may be repeated",
        )
    for name in ("quickstart", "train", "reproduce", "evaluate", "bench"):
        one = made[name]
        _path(one, "--data-dir", "DIR", DATA_DIR)
        one.add_argument("--threads", metavar="N", help="processor threads to use")
    _quickstart(made["quickstart"])
    _train(made["train"])
    _reproduce(made["reproduce"])
    _evaluate(made["evaluate"])
    _predict(made["predict"])
    _bench(made["bench"])
    _leaderboard(made["leaderboard"])
    _compare(made["compare"])
    _causal(made["causal"])
    _pack(made["pack"])
    made["recipes"].add_argument("recipe", nargs="?", metavar="RECIPE", help="show this one")
    _path(made["info"], "run", "RUN", "folder of a run")
    return parser


RESUME = "go on from the run's checkpoint"


def _quickstart(one: argparse.ArgumentParser) -> None:
    one.add_argument("--resume", action="store_true", help=RESUME)
    _path(one, "--run", "DIR", "folder to write to (default: a new one in runs/)")
    _path(one, "--output", "FILE", "result file (default: in that folder)")


def _resumed(one: argparse.ArgumentParser) -> None:
    """Adds where a run is kept, and whether to go on with it."""
    _path(one, "--run", "DIR", "folder of the run (default: runs/RECIPE)")
    one.add_argument("--resume", action="store_true", help=RESUME)


def _train(one: argparse.ArgumentParser) -> None:
    _resumed(one)
    one.add_argument(
        "recipe",
        nargs="?",
        help="name, or a TOML file (default: usual settings for the learner and the data, which "
        "are reptile and glyphs unless you name others)",
    )
    for flag, text in {
        "--learner": "algorithm: reptile or protonet, say; a wrong name lists all",
        "--data": "data set: glyphs, omniglot or sinusoids, say; a wrong name lists all",
        "--model": "network: conv4 or mlp, say; a wrong name lists all",
        "--meta-iterations": "outer updates",
        "--seed": "seed of everything random",
        "--precision": "fp32, bf16 or auto",
        "--device": "cpu or cuda",
    }.items():
        one.add_argument(flag, metavar=flag[2:].upper().replace("-", "_"), help=text)
    one.add_argument(
        "--profile",
        action="store_true",
        help="show where the time goes, and write a trace.json.gz into the run, for a trace viewer",
    )


def _reproduce(one: argparse.ArgumentParser) -> None:
    _resumed(one)
    one.add_argument("recipe", metavar="RECIPE", help="see `tegu recipes`")
    _path(
        one,
        "--output",
        "FILE",
        "result file (default: benchmarks/results/RECIPE.json where that folder exists, "
        "else in the run)",
    )


def _evaluate(one: argparse.ArgumentParser) -> None:
    _path(one, "run", "RUN", "folder of a run")
    one.add_argument("--episodes", metavar="N", help="unseen tasks for each figure")
    _path(one, "--output", "FILE", "result file (default: evaluation.json in the run)")


def _predict(one: argparse.ArgumentParser) -> None:
    _path(one, "run", "RUN", "folder of a run on data of yours")
    _path(
        one,
        "task",
        "TASK",
        "a few examples of each class: a folder with a sub-folder for each, or a table of "
        "texts and labels; or a task that --save kept",
    )
    one.add_argument(
        "files",
        nargs="+",
        type=expanded,
        metavar="FILE",
        help="what to name; for texts, a file with one in each line",
    )
    _path(one, "--save", "FILE", "keep the task in FILE.safetensors")
    _defaulted(one, ("--device", str, "cpu", "cpu or cuda"))


def _bench(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "recipe",
        nargs="?",
        default="reptile-glyphs",
        metavar="RECIPE",
        help="name, or a TOML file (default: reptile-glyphs, which needs no data)",
    )
    _defaulted(one, ("--seconds", float, 20.0, "of timing, about"))
    _path(one, "--output", "FILE", "result file (default: none is written)")


def _leaderboard(one: argparse.ArgumentParser) -> None:
    for flag, what in (
        ("--learner", "this learner only; may be repeated"),
        ("--data", "omniglot, cifar-fs or glyphs; may be repeated (default: the first two)"),
    ):
        one.add_argument(flag, action="append", metavar="NAME", help=what)
    _defaulted(
        one,
        ("--seconds", float, 180.0, "training time of each learner on each data set"),
        ("--episodes", int, 1000, "unseen tasks for each figure, as far as a minute goes"),
        ("--seed", seed, 0, "seed of everything random"),
        ("--threads", int, 0, "processor threads to use; 0 for torch's choice"),
        ("--precision", str, "fp32", "fp32, bf16 or auto"),
        ("--device", str, "cpu", "cpu or cuda"),
    )
    _places(one, "leaderboard", "leaderboard")


def seed(text: str) -> int:
    """A seed that every source of random numbers takes."""
    if abs(value := int(text)) > 1 << 62:
        raise argparse.ArgumentTypeError(f"{text[:30]} is beyond 62 bits")
    return value


def _path(one: argparse.ArgumentParser, name: str, metavar: str, text: str) -> None:
    """Adds a file or folder; `~` is the user's."""
    one.add_argument(name, type=expanded, metavar=metavar, help=text)


def _defaulted(
    one: argparse.ArgumentParser, *flags: tuple[str, Callable[[str], Any], Any, str]
) -> None:
    """Adds flags of a type, each with a default that its help tells."""
    for flag, kind, default, text in flags:
        text = f"{text} (default: {default})"
        one.add_argument(flag, type=kind, default=default, metavar=flag[2:].upper(), help=text)


def _places(one: argparse.ArgumentParser, folder: str, result: str) -> None:
    """Adds where a comparison of learners reads data, keeps entries and writes its result."""
    _path(one, "--data-dir", "DIR", DATA_DIR)
    _path(one, "--run", "DIR", f"folder of entries (default: runs/{folder})")
    _path(
        one,
        "--output",
        "FILE",
        f"result file (default: benchmarks/results/{result}.json where that folder exists, "
        "else in the folder of entries)",
    )


def _causal(one: argparse.ArgumentParser) -> None:
    _path(one, "file", "FILE", "columns between commas, tabs, semicolons or blanks")
    _defaulted(one, ("--seed", seed, 0, "seed of everything random"))
    one.add_argument(
        "--kind",
        metavar="KIND",
        help="of two columns: auto, numbers, or categories, whole numbers that only name "
        "(default: auto)",
    )
    one.add_argument(
        "--repetitions",
        type=int,
        metavar="N",
        help="of two columns: how often the belief is learnt, from rows drawn anew (default: 12)",
    )
    one.add_argument(
        "--updates",
        type=int,
        metavar="N",
        help="updates of the belief (default: 60 for two columns, 600 for more)",
    )
    one.add_argument(
        "--environment",
        metavar="COLUMN",
        help="name or number of the column that says under which conditions, or after which "
        "intervention, a row was observed; needed for three columns or more",
    )
    one.add_argument(
        "--baseline",
        metavar="LABEL",
        help="label of the rows without an intervention, for three columns or more "
        "(default: that of the first row)",
    )
    _path(
        one, "--output", "FILE", "picture of the belief (default: FILE-belief.png in this folder)"
    )


def _pack(one: argparse.ArgumentParser) -> None:
    _path(one, "folder", "FOLDER", "one sub-folder for each class, images in it")
    _path(one, "out", "OUT", "folder to write, not there yet")
    _defaulted(
        one,
        ("--size", int, 84, "height and width that images are brought to, pixels"),
        ("--channels", int, 3, "3 for colour, 1 for grey"),
        ("--fit", str, "crop", "crop, pad or stretch: how other proportions become square"),
        ("--seed", seed, 0, "of the division of classes into splits"),
        ("--least", int, 1, "classes with fewer images are left out"),
        ("--workers", int, 0, "threads that read images; 0 for one a processor"),
    )
    one.add_argument(
        "--shares",
        type=int,
        nargs=3,
        default=(64, 16, 20),
        metavar=("TRAIN", "VAL", "TEST"),
        help="of the splits among the classes, where the folder is not divided into meta_train, "
        "meta_val and meta_test (default: 64 16 20)",
    )
    one.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out, and list, files that are no images and classes that are then too small",
    )


def _compare(one: argparse.ArgumentParser) -> None:
    one.add_argument("learners", nargs="+", metavar="LEARNER", help="algorithms, two or more")
    one.add_argument(
        "--data", metavar="NAME", help="data set (default: the first whose tasks all of them learn)"
    )
    _defaulted(
        one,
        (
            "--seconds",
            float,
            300.0,
            "meta-training of each learner; scoring and timing take one and a half times as "
            "long again at most, about",
        ),
        ("--episodes", int, 300, "unseen tasks for each point of the curve"),
        ("--seed", seed, 0, "seed of everything random"),
        ("--threads", int, 0, "processor threads to use; 0 for torch's choice"),
        ("--precision", str, "fp32", "fp32, bf16 or auto"),
    )
    _places(one, "compare", "compare-LEARNER-LEARNER")
