"""Every command, run in this process with tiny settings, and the whole program once."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

from tegu import __version__, load_run, recipes, report
from tegu.cli import COMMANDS, main
from tegu.engine.checkpoint import load_checkpoint
from tegu.engine.train import Progress
from tegu.models import Conv4

TINY = {
    "train.meta_iterations": 4,
    "train.meta_batch": 2,
    "train.validate_every": 2,
    "train.validate_episodes": 2,
    "train.n_shot": 2,
    "evaluate.episodes": 4,
    "model.width": 4,
    "learner.inner_steps": 1,
    "learner.inner_batch": 3,
    "learner.eval_steps": 2,
}
WAVES = {k: v for k, v in TINY.items() if k != "model.width"} | {"model.hidden": "[8]"}


def settings(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


GLYPHS = ["reptile-glyphs", *settings(TINY)]
SINUSOIDS = ["reptile-sinusoids", *settings(WAVES)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_glyphs: None) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a command prints with --json: one document and nothing else."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def digest(run: str) -> str:
    return load_checkpoint(Path(run) / "checkpoint.safetensors").digest()


def is_picture(path: str) -> bool:
    return Path(path).read_bytes().startswith(b"\x89PNG")


def test_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "quickstart", *settings(TINY))
    names = ("scratch", "before", "after")
    assert {"chance", *names, "ci95", "episodes", "seconds", "pictures"} <= found.keys()
    assert found["chance"] == 0.2
    assert all(0 <= found[name] <= 1 for name in names)
    assert found["intervals"].keys() == set(names)
    assert all(0 <= half < 1 for half in found["intervals"].values())
    assert found["ci95"] == found["intervals"]["after"]
    assert json.loads(Path(found["result"]).read_text())["name"] == "quickstart"
    assert found["episodes"] == 4
    assert found["seconds"] > 0
    assert found["protocol"]["split"] == "meta_test"
    assert found["run"] == "runs/quickstart"
    pictures = {Path(path).name for path in found["pictures"]}
    assert pictures == {"comparison.png", "episode.png", "learning-curve.png"}
    assert all(map(is_picture, found["pictures"]))


def test_quickstart_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """A new folder each time, unless one is named and gone on with."""
    assert main(["quickstart", *settings(TINY), "--run", "here"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("5-way 1-shot on 4 tasks of unseen characters\nchance: 20.0%\n")
    assert "Reptile after meta-training" in out
    assert "picture: here/comparison.png" in out
    assert "meta-train reptile-glyphs: 4/4 iterations" in err
    Path("runs/quickstart").mkdir(parents=True)
    assert document(capsys, "quickstart", *settings(TINY))["run"] == "runs/quickstart-2"
    assert main(["quickstart", *settings(TINY), "--run", "here", "--resume"]) == 0


def test_train(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "train", *GLYPHS)
    assert found["run"] == "runs/reptile-glyphs"
    assert found["meta_iterations"] == 4
    assert found["loss"] > 0
    assert 0 <= found["validation"] <= 1
    assert found["pictures"] == ["runs/reptile-glyphs/learning-curve.png"]
    assert all(map(is_picture, found["pictures"]))
    lines = Path("runs/reptile-glyphs/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [2, 4]


def test_train_on_waves_pictures_a_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SINUSOIDS, "--run", "waves"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("meta-learned in ")
    assert out.endswith("next: tegu evaluate waves\n")
    assert is_picture("waves/fit.png")


def test_short_options_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model mlp --seed 7 --meta-iterations 2 --precision bf16 --device cpu --threads 1"
    threads = torch.get_num_threads()
    try:
        own = {k: v for k, v in WAVES.items() if k != "train.meta_iterations"}
        document(capsys, "train", *settings(own), *words.split(), "--run", "r")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    recipe = json.loads(Path("r/recipe.json").read_text())
    assert recipe["model"]["name"] == "mlp"
    assert recipe["train"]["seed"] == 7
    assert recipe["train"]["meta_iterations"] == 2
    assert recipe["engine"]["precision"] == "bf16"
    assert recipe["engine"]["threads"] == 1


@pytest.mark.parametrize("pays", [True, False])
def test_a_slow_precision_is_told(
    pays: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tegu.commands.runs.half_pays", lambda device: pays)
    assert main(["train", *SINUSOIDS, "--run", "waves", "--precision", "bf16"]) == 0
    assert ("engine.precision=auto takes the faster" in capsys.readouterr().err) != pays


def test_a_recipe_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[data]\nname = 'sinusoids'\n[model]\nname = 'mlp'\n[train]\nmeta_iterations = 1\n"
    Path("mine.toml").write_text(text)
    assert document(capsys, "train", "mine.toml", "--run", "r")["meta_iterations"] == 1
    assert json.loads(Path("r/recipe.json").read_text())["name"] == "mine"


def test_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    document(capsys, "train", *GLYPHS, "--run", "r")
    found = document(capsys, "evaluate", "r", "--episodes", "6")
    assert found["command"] == "tegu evaluate RUN --episodes 6"
    assert found["training"]["meta_iterations"] == 4
    (cell,) = found["cells"]
    assert cell["episodes"] == 6
    assert 0 <= cell["value"] <= 1
    assert cell["protocol"]["data"] == "glyphs"
    assert json.loads(Path("r/evaluation.json").read_text()) == found
    assert main(["evaluate", "r", "--episodes", "6"]) == 0
    assert capsys.readouterr().out.endswith("result: r/evaluation.json\n")


def test_settings_that_training_made_no_use_of_can_change_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document(capsys, "train", *GLYPHS, "--run", "r")
    none = document(capsys, "evaluate", "r", "--episodes", "6", "--set", "learner.eval_steps=0")
    assert none["command"] == "tegu evaluate RUN --set learner.eval_steps=0 --episodes 6"
    some = document(capsys, "evaluate", "r", "--episodes", "6", "--set", "learner.eval_steps=9")
    assert none["cells"] != some["cells"]
    assert main(["evaluate", "r", "--set", "learner.inner_lr=0.1"]) == 2
    assert "learner.eval_steps, learner.eval_batch" in capsys.readouterr().err


def test_answers_in_the_light_of_other_queries_are_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pre-trained on batches of all classes; each cell of a transductive head says so."""
    monkeypatch.setattr(Conv4, "feature_width", 16, raising=False)
    common = {k: v for k, v in TINY.items() if not k.startswith("learner")}
    for name, marked in (("tim", True), ("simpleshot", None)):
        tiny = {**common, "learner.name": name, "train.meta_batch": 1, "train.batch": 9}
        trained = document(capsys, "train", "reptile-glyphs", *settings(tiny), "--run", name)
        assert trained["meta_iterations"] == 4
        (cell,) = document(capsys, "evaluate", name)["cells"]
        assert cell["protocol"].get("transductive") is marked
        assert ("transductive" in report.table([cell])) == bool(marked)


def test_reproduce(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "reproduce", *GLYPHS, "--output", "new/result.json")
    assert json.loads(Path("new/result.json").read_text()) == found
    assert found["name"] == "reptile-glyphs"
    assert shlex.split(found["command"]) == ["tegu", "reproduce", *GLYPHS]
    keys = {"seconds", "meta_iterations", "peak_bytes", "precision", "commits"}
    assert found["training"].keys() == keys
    assert found["training"]["precision"] == "fp32"
    assert found["cells"][0]["published"] is None


def test_reproduce_writes_where_results_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *GLYPHS]) == 0
    assert capsys.readouterr().out.endswith("result: runs/reptile-glyphs/reptile-glyphs.json\n")
    Path("benchmarks/results").mkdir(parents=True)
    assert main(["reproduce", *GLYPHS, "--resume"]) == 0
    assert capsys.readouterr().out.endswith("result: benchmarks/results/reptile-glyphs.json\n")


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "recipes")["recipes"]
    assert [one["name"] for one in found] == recipes.names()
    assert document(capsys, "recipes", "reptile-glyphs")["train"]["meta_iterations"] == 600
    assert main(["recipes"]) == 0
    assert "reptile-omniglot-5way" in capsys.readouterr().out
    assert main(["recipes", "reptile-omniglot-5way"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].startswith("source: Nichol")
    assert "  inner_lr = 0.001" in shown
    assert "  cells = 4 figures" in shown


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    document(capsys, "train", *GLYPHS, "--run", "r")
    found = document(capsys, "info", "r")
    assert found["recipe"] == "reptile-glyphs"
    assert found["learner"] == "reptile"
    assert found["iteration"] == found["meta_iterations"] == 4
    assert found["digest"] == digest("r")
    assert found["validation"] is not None
    names = ["checkpoint.safetensors", "learning-curve.png", "metrics.jsonl", "recipe.json"]
    assert found["files"] == names
    assert found["parameters"] == 4 * 9 * (1 + 4 + 4 + 4) + 4 * 2 * 4 + (2 * 2 * 4 + 1) * 5
    assert main(["info", "r"]) == 0
    assert f"digest           {digest('r')}\n" in capsys.readouterr().out


def stop_at_the_first_report(monkeypatch: pytest.MonkeyPatch, signum: int = signal.SIGTERM) -> None:
    def training(tell: object, **_: object) -> Any:
        def told(report: Progress) -> None:
            os.kill(os.getpid(), signum)

        return told

    monkeypatch.setattr("tegu.commands.runs.training", training)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", [*GLYPHS, "--run", "b"]),
        ("reproduce", [*GLYPHS, "--run", "b"]),
        ("quickstart", settings(TINY)),
    ],
)
def test_stopped_by_sigterm_and_gone_on_with(
    command: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command that it names gives the bits of a run that nothing stopped."""
    assert main(["train", *GLYPHS, "--run", "a"]) == 0
    with monkeypatch.context() as patch:
        stop_at_the_first_report(patch)
        assert main([command, *words]) == 128 + signal.SIGTERM == 143
    out, err = capsys.readouterr()
    assert out.count("\n") == 3  # of the whole run
    said, _, todo = err.splitlines()[-1].partition(", go on with: ")
    assert said == "stopped by SIGTERM after iteration 2; nothing is lost"
    again = shlex.split(todo)
    run = again[again.index("--run") + 1]
    assert load_checkpoint(Path(run) / "checkpoint.safetensors").iteration == 2
    assert again[0] == "tegu"
    assert main(again[1:]) == 0
    assert digest(run) == digest("a")


def test_stopped_twice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on may be stopped too, and by Ctrl-C."""
    words = ["train", *GLYPHS, "--set", "train.meta_iterations=6", "--run", "b"]
    stop_at_the_first_report(monkeypatch, signal.SIGINT)
    for extra in ([], ["--resume"]):
        assert main([*words, *extra]) == 130
        assert capsys.readouterr().err.endswith(
            f" go on with: {shlex.join(['tegu', *words])} --resume\n"
        )


def test_resuming_what_is_done_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    document(capsys, "train", *GLYPHS, "--run", "r")
    before = digest("r")
    found = document(capsys, "train", "--run", "r", "--resume")  # its settings are in the folder
    assert found == document(capsys, "train", *GLYPHS, "--run", "r", "--resume")
    assert (found["meta_iterations"], found["loss"]) == (4, None)
    assert digest("r") == before


def test_a_run_goes_on_for_longer(capsys: pytest.CaptureFixture[str]) -> None:
    steady = ["--set", "train.outer_lr=0.5", "--set", "train.outer_lr_final=0.5"]
    document(capsys, "train", *GLYPHS, *steady, "--run", "r")
    found = document(capsys, "train", "--run", "r", "--resume", "--meta-iterations", "6")
    assert found["meta_iterations"] == 6
    document(
        capsys, "train", *GLYPHS, *steady, "--run", "whole", "--set", "train.meta_iterations=6"
    )
    ends = [load_checkpoint(Path(run) / "checkpoint.safetensors") for run in ("r", "whole")]
    torch.testing.assert_close(ends[0].params, ends[1].params, rtol=0, atol=0)
    assert document(capsys, "info", "r")["meta_iterations"] == 6
    told = document(capsys, "evaluate", "r")["training"]
    assert (told["meta_iterations"], told["began"]) == (6, {"train.meta_iterations": 4})
    assert load_run("r").params.keys() == ends[0].params.keys()
    assert main(["train", "--run", "r", "--resume"]) == 0
    assert "it goes on with a larger --meta-iterations N" in capsys.readouterr().out
    assert main(["train", "--run", "r", "--resume", "--meta-iterations", "3"]) == 2
    assert "train.meta_iterations 6 there, 3 here" in capsys.readouterr().err
    assert main(["train", "--run", "r", "--resume", "--meta-iterations", "5"]) == 2
    assert "5 meta-iterations for a run that has done 6" in capsys.readouterr().err
    six = ["--set", "train.meta_iterations=6"]
    assert main(["reproduce", *GLYPHS, *steady, *six, "--run", "r", "--resume"]) == 2
    assert "r holds a run that was prolonged" in capsys.readouterr().err


def test_a_run_that_ended_by_time(capsys: pytest.CaptureFixture[str]) -> None:
    timed = ["--set", "train.seconds=0.001", "--set", "train.meta_iterations=9999"]
    document(capsys, "train", *GLYPHS, *timed, "--run", "r")
    assert main(["train", "--run", "r", "--resume"]) == 0
    assert "it goes on with a larger --set train.seconds=N" in capsys.readouterr().out
    longer = ["train", "--run", "r", "--resume", "--set", "train.seconds=0.4"]
    assert document(capsys, *longer)["meta_iterations"] > 1


def test_ctrl_c_outside_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tegu.sources.images.load_glyphs", interrupted)
    assert main(["train", *GLYPHS]) == 130
    assert capsys.readouterr() == ("", "stopped\n")


def test_version_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tegu {__version__}\n"
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: tegu ")


def test_the_installed_command_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="tegu")
    assert script.value == "tegu.cli:main"


HELP = """
import runpy, sys
for command in sys.argv[1:]:
    sys.argv = ["tegu", *command.split(), "--help"]
    try:
        runpy.run_module("tegu", run_name="__main__")
    except SystemExit as end:
        print(f"ended with {end.code}", end="\\f")
"""


def test_help_of_the_program_and_of_each_command() -> None:
    """As `python -m tegu` gives it, one after another in one process: torch loads slowly."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", HELP, "", *COMMANDS],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=True,
    )
    assert done.stderr == ""
    pages = done.stdout.split("\f")[:-1]
    for command, page in zip(("", *COMMANDS), pages, strict=True):
        assert page.startswith(f"usage: tegu {command}".rstrip() + " ")
        assert COMMANDS.get(command, "Meta-learning")[1:] in page.replace("\n", " ")
        assert page.endswith("\nended with 0")


def test_the_examples_of_the_help_are_understood(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is parsed and its settings are taken; what it would run is not."""
    from tegu import arguments as taking
    from tegu import commands

    examples = [
        line.split()[1:] for line in taking.EPILOG.splitlines() if line.startswith("  tegu ")
    ]
    assert len(examples) >= 8
    written = [words for words in commands_of_documents() if words[0] in COMMANDS]
    assert len(written) >= 40
    ran = []

    def taken(arguments: argparse.Namespace, *rest: Any) -> tuple[dict[str, Any], str]:
        ran.append(arguments)
        if arguments.command in ("train", "reproduce", "bench"):
            settings = rest[0]
            if recipe := getattr(arguments, "recipe", None):
                if not recipe.endswith(".toml"):  # a reader's own
                    recipes.load(recipe, settings)
            else:
                learner = settings.get("learner.name", "reptile")
                recipes.starting(learner, settings.get("data.name", "glyphs"), settings)
        return {}, "done"

    for name in COMMANDS:
        monkeypatch.setitem(commands.COMMANDS, name, taken)
    for words in [*examples, *written]:
        assert main(words) == 0, (words, capsys.readouterr().err)
    assert len(ran) == len(examples) + len(written)


def commands_of_documents() -> list[list[str]]:
    """What follows `tegu` in every line of shell that the documents show."""
    root = Path(__file__).resolve().parents[1]
    found = []
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "tegu" in words:
                    found.append(words[words.index("tegu") + 1 :])
    return found


def test_every_option_of_pack_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def packed(*_: Any, **settings: Any) -> Any:
        asked.update(settings)
        return {"shape": [], "splits": {}}, []

    monkeypatch.setattr("tegu.commands.tables.pack_folder", packed)
    options = "--size 9 --channels 1 --fit pad --seed 2 --least 3 --workers 1 --shares 1 0 1"
    assert main(["pack", "a", "b", *options.split(), "--skip-broken"]) == 0
    asked.pop("progress")
    assert asked == {
        "size": 9,
        "channels": 1,
        "fit": "pad",
        "seed": 2,
        "least": 3,
        "workers": 1,
        "shares": [1, 0, 1],
        "skip_broken": True,
    }


@pytest.mark.parametrize("rank", ["0", "1"])
def test_commands_that_no_two_processes_share(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told once, by the first of them."""
    there = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_ADDR": "localhost"}
    there["MASTER_PORT"] = "29500"
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    assert main(["recipes"]) == 2
    told = capsys.readouterr().err
    assert ("tegu recipes over 2 processes" in told) == (rank == "0")


def test_no_module_needs_what_only_tests_install() -> None:
    code = """
import importlib, pkgutil, sys
for name in ("scipy", "sklearn", "pandas", "pytest"):
    sys.modules[name] = None
import tegu
for module in pkgutil.walk_packages(tegu.__path__, "tegu."):
    if module.name != "tegu.__main__":
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_evaluation_goes_where_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    document(capsys, "train", *GLYPHS, "--run", "r")
    found = document(capsys, "evaluate", "r", "--output", "other.json")
    assert json.loads(Path("other.json").read_text())["cells"] == found["cells"]
    assert not Path("r/evaluation.json").exists()
    for bad in ("/", "r"):
        assert main(["evaluate", "r", "--output", bad]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_a_home_in_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """No shell writes it out behind `=`."""
    (place / "home").mkdir()
    monkeypatch.setenv("HOME", str(place / "home"))
    document(capsys, "train", *GLYPHS, "--run=~/r")
    assert (place / "home" / "r" / "checkpoint.safetensors").is_file()
    assert not Path("~").exists()
    assert main(["info", "~nobody-of-this-name/r"]) == 2
    assert "~nobody-of-this-name/r holds no run" in capsys.readouterr().err


def test_advice_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *GLYPHS, "--run", "my run"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("next: "))
    assert shlex.split(line)[1:] == ["tegu", "evaluate", "my run"]


def test_a_comparison_that_could_not_keep_its_entries(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    words = ["compare", "reptile", "protonet", "--output", "ok.json"]
    assert main([*words, "--run", "file"]) == 2
    assert "Choose another --run." in capsys.readouterr().err
    assert main([*words, "--data", "folder"]) == 2
    assert "the data set folder without a path" in capsys.readouterr().err


def test_streams_that_are_closed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert main(["train", *GLYPHS, "--run", "r", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "r"
    assert main(["info", "nowhere", "--json"]) == 2
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.stdout", None)
    assert main(["info", "r"]) == 0
