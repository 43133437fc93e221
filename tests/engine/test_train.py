"""Meta-training: the same bits however often it is stopped, and no harm to any folder."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.checkpoint import load_checkpoint, save_checkpoint
from tegu.engine.run import Run, read_metrics
from tegu.engine.stops import stop_signals
from tegu.engine.train import (
    BLOCK,
    Interrupted,
    Progress,
    Settings,
    meta_train,
)
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples
from tegu.errors import InputError
from tegu.files import write_atomically
from tegu.inner import Params
from tegu.learners import FineTune, Maml, Reptile
from tegu.losses import gaussian
from tegu.models import Mlp
from tegu.sampling import FewShotTasks

RECIPE = {"learner": "reptile", "widths": (8,), "seed": 3}


def engine(**settings: Any) -> Vectorised:
    own = {"inner_steps": 2, "inner_batch": 3, "inner_lr": 0.01, **settings}
    return Vectorised(Reptile(model=Mlp(6, 3, hidden=(8,)), **own))


@pytest.fixture
def tasks(toy_data: ClassDataset) -> FewShotTasks:
    return FewShotTasks(toy_data, n_way=3, n_shot=2, n_query=0)


def same(found: Params, expected: Params) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Stop:
    """Tasks that send this process a signal when block number `at` is drawn."""

    def __init__(self, tasks: FewShotTasks, at: int, signum: int) -> None:
        self.tasks, self.at, self.signum, self.split = tasks, at, signum, tasks.split

    def episodes(self, index: Tensor) -> Episode:
        if len(index) > 1:
            self.at -= 1
            if self.at == 0:
                os.kill(os.getpid(), self.signum)
        return self.tasks.episodes(index)


def test_the_same_seed_gives_the_same_bits(tasks: FewShotTasks) -> None:
    settings = Settings(6, 2, seed=3)
    first, report = meta_train(engine(), tasks, settings)
    same(meta_train(engine(), tasks, settings)[0], first)
    assert report.iteration == 6
    for other in (
        meta_train(engine(), tasks, replace(settings, seed=4)),
        meta_train(engine(), replace(tasks, seed=1), settings),
    ):
        assert not torch.equal(other[0]["body.1.weight"], first["body.1.weight"])


def test_what_one_iteration_makes_does_not_depend_on_the_block(tasks: FewShotTasks) -> None:
    """More iterations than a block holds, with a step that stays the same."""
    settings = Settings(BLOCK + 3, 1, outer_lr=0.5, outer_lr_final=0.5)
    params, _ = meta_train(engine(), tasks, settings)
    again = engine()
    expected = again.learner.init()
    for i in range(BLOCK + 3):
        key = keys.key(0, "meta_train", i).reshape(1)
        expected, _ = again.outer_step(
            expected, tasks.episodes(torch.tensor([i])), key, outer_lr=0.5
        )
    same(params, expected)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_resumed(signum: int, tasks: FewShotTasks, tmp_path: Path) -> None:
    settings = Settings(2 * BLOCK + 5, 2, seed=3)
    expected, _ = meta_train(engine(), tasks, settings, run=Run(tmp_path / "a", RECIPE))
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stopped_at = []
    for at in (1, 2):
        run = Run(tmp_path / "b", RECIPE)
        with pytest.raises(Interrupted, match=r"stopped by SIG(INT|TERM) after iteration") as info:
            meta_train(engine(), Stop(tasks, at, signum), settings, run=run, resume=at > 1)
        assert info.value.signum == signum
        stopped_at.append(info.value.iteration)
        assert load_checkpoint(run.checkpoint).iteration == info.value.iteration
    assert stopped_at == [1, 1 + 1 + 1]  # the first block of a run is one iteration
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    params, report = meta_train(
        engine(), tasks, settings, run=Run(tmp_path / "b", RECIPE), resume=True
    )
    same(params, expected)
    assert report.iteration == settings.meta_iterations
    digests = {load_checkpoint(tmp_path / x / "checkpoint.safetensors").digest() for x in "ab"}
    assert len(digests) == 1


def test_a_second_signal_ends_the_iteration_itself(tasks: FewShotTasks, tmp_path: Path) -> None:
    class Long(Vectorised):
        """The third update waits for a signal that comes twice."""

        def update(self, *args: Any, done: float, **settings: Any) -> Any:
            if done > 0.4:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("went on")
            return super().update(*args, done=done, **settings)

    settings = Settings(5, 2, seed=3, checkpoint_seconds=0)
    expected, _ = meta_train(engine(), tasks, settings)
    run, before = Run(tmp_path / "run", RECIPE), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as info:
        meta_train(Long(engine().learner), tasks, settings, run=run)
    assert type(info.value) is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(run.checkpoint).iteration >= 1
    again = Run(tmp_path / "run", RECIPE)
    same(meta_train(engine(), tasks, settings, run=again, resume=True)[0], expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_outer_step_size_falls_as_torch_has_it(schedule: str, tasks: FewShotTasks) -> None:
    settings = Settings(7, 1, outer_lr=0.5, outer_lr_final=0.1, outer_schedule=schedule)
    seen: list[float] = []

    class Noted(Vectorised):
        def update(self, *args: Any, outer_lr: float, **settings: Any) -> Any:
            seen.append(outer_lr)
            return super().update(*args, outer_lr=outer_lr, **settings)

    meta_train(Noted(engine().learner), tasks, settings)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs: Any = (
        torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.2, 7)
        if schedule == "linear"
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 7, 0.1)
    )
    expected = []
    for _ in range(7):
        expected.append(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
    assert seen == pytest.approx(expected)
    with pytest.raises(InputError, match=r"unknown outer schedule 'cosin'.*Did you mean 'cosine'"):
        replace(settings, outer_schedule="cosin")


@dataclass(frozen=True, kw_only=True)
class Staged(FineTune):
    """Its loss is what it is told, and does not depend on the weights."""

    name: ClassVar[str] = "staged"

    def schedule(self, done: float) -> Params:
        late = {"late": torch.ones(())} if done >= 0.5 else {}
        return {"done": torch.tensor(done), **late}

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        zero = sum(p.sum() for name, p in params.items() if "/" not in name) * 0
        return zero + params["schedule/done"] + (10 if "schedule/late" in params else 0)


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_a_learner_is_told_how_far_meta_training_is(
    how: str, tasks: FewShotTasks, tmp_path: Path
) -> None:
    """Of four iterations two are late; nothing of it is learned or kept."""
    staged, losses = Staged(model=Mlp(6, 3)), []
    params, _ = meta_train(
        Vectorised(staged, vectorise=how),
        replace(tasks, n_query=1),
        Settings(4, 2, validate_every=1),
        run=Run(tmp_path, {}),
        progress=lambda report: losses.append(report.loss),
    )
    assert losses == [0.0, 0.25, 10.5, 10.75]
    saved = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert params.keys() == saved.params.keys() == staged.init().keys()
    assert not any("schedule" in name for name in saved.outer)


def test_a_second_signal_among_ranks_is_only_noted() -> None:
    seen: list[int] = []
    with stop_signals(seen, alone=False):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGINT] * 2


def test_outside_the_main_thread_signals_are_left_alone(
    tasks: FewShotTasks, tmp_path: Path
) -> None:
    found: list[Params] = []
    settings, run = Settings(2, 2), Run(tmp_path, RECIPE)
    thread = threading.Thread(
        target=lambda: found.append(meta_train(engine(), tasks, settings, run=run)[0])
    )
    thread.start()
    thread.join()
    same(found[0], meta_train(engine(), tasks, settings)[0])


SCRIPT = """
import sys, torch
from pathlib import Path
from tegu.datasets.classes import ClassDataset
from tegu.engine.checkpoint import load_checkpoint
from tegu.engine.run import Run
from tegu.engine.train import Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.learners import Reptile
from tegu.models import Mlp
from tegu.sampling import FewShotTasks

torch.set_num_threads(1)
x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
data = ClassDataset("toy", "meta_train", x, torch.tensor([10] * 4), tuple("abcd"))
learner = Reptile(model=Mlp(6, 3, hidden=(8,)), inner_steps=1, inner_batch=3)
run = Run(Path(sys.argv[1]), {"what": "a test"})
settings = Settings(int(sys.argv[2]), 2, validate_every=10, checkpoint_seconds=0.01)
print("ready", flush=True)
tasks = FewShotTasks(data, 3, 2)
params, _ = meta_train(
    Vectorised(learner), tasks, settings, run=run, resume=True, validate=lambda params: 0.5
)
print(load_checkpoint(run.checkpoint).digest(), flush=True)
"""
ITERATIONS = 600


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(ITERATIONS)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.strip()


def reached(folder: Path) -> int:
    """The iteration of a run's checkpoint, which is whole whenever it is there."""
    file = folder / "checkpoint.safetensors"
    return load_checkpoint(file).iteration if file.exists() else 0


def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    """Five kills of one run, each at a random moment of what is left of it."""
    expected = finish(start(tmp_path / "whole"))
    seed, folder = time.time_ns(), tmp_path / "killed"
    dice, stood = random.Random(seed), [0]  # where the run stood, kill by kill
    for _ in range(5):
        process = start(folder)
        patience = time.monotonic() + 60
        while reached(folder) == stood[-1] and process.poll() is None:
            assert time.monotonic() < patience, "no checkpoint in a minute"
            time.sleep(0.002)
        time.sleep(dice.uniform(0.0, 0.05))  # all five end well before the run does
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"the run had ended, after {stood}; {seed}"
        stood.append(reached(folder))
        assert stood[-2] < stood[-1] < ITERATIONS
    last = start(folder)
    assert finish(last) == expected, f"killed at iterations {stood}; {seed}"
    names = ["checkpoint.safetensors", "metrics.jsonl", "recipe.json"]
    assert sorted(p.name for p in folder.iterdir()) == names
    lines, same_lines = (
        [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
        for one in (folder, tmp_path / "whole")
    )
    assert [line["iteration"] for line in lines] == list(range(10, ITERATIONS + 1, 10))
    for line in [*lines, *same_lines]:
        line.pop("seconds")
    assert lines == same_lines


def test_a_full_disk_keeps_the_last_checkpoint(
    tasks: FewShotTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(40, 2, validate_every=4, checkpoint_seconds=0.0)
    whole, _ = meta_train(engine(), tasks, settings, run=Run(tmp_path / "a", RECIPE))
    replaces, really = [], os.replace

    def full(source: str, target: Path) -> None:
        replaces.append(target)
        if len(replaces) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(source, target)

    run = Run(tmp_path / "b", RECIPE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match=r"cannot be written: No space left on device.*room"):
            meta_train(engine(), tasks, settings, run=run)
    assert 0 < load_checkpoint(run.checkpoint).iteration < 40
    names = ["checkpoint.safetensors", "metrics.jsonl", "recipe.json"]
    assert sorted(p.name for p in run.folder.iterdir()) == names
    params, _ = meta_train(engine(), tasks, settings, run=Run(run.folder, RECIPE), resume=True)
    same(params, whole)


def refused(run: Run, text: str, *, resume: bool) -> None:
    before = {p: p.read_bytes() for p in run.folder.parent.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=text):
        run.open(resume=resume)
    assert {p: p.read_bytes() for p in run.folder.parent.rglob("*") if p.is_file()} == before


def test_folders_that_are_not_this_runs(tasks: FewShotTasks, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    meta_train(engine(), tasks, Settings(1, 1), run=Run(folder, RECIPE))
    refused(Run(folder, RECIPE), r"holds a run already; expected a new.*--resume", resume=False)
    other = {**RECIPE, "seed": 4, "new": 1}
    for resume in (True, False):
        text = (
            rf"belongs to a run with other settings \(seed {RECIPE['seed']} there, 4 here; "
            r"new unset there, 1 here\); expected the settings"
        )
        refused(Run(folder, other), text, resume=resume)

    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("mine")
    for resume in (True, False):
        text = r"papers is not empty and holds no run.*nothing in this one was touched"
        refused(Run(tmp_path / "papers", RECIPE), text, resume=resume)

    refused(Run(tmp_path / "papers" / "thesis.tex", RECIPE), r"thesis.tex is a file", resume=False)

    for text in ("{", "[1]", '"x"'):
        (folder / "recipe.json").write_text(text)
        refused(Run(folder, RECIPE), r"recipe.json holds no settings.*another folder", resume=True)


def test_a_run_goes_on_for_longer(tasks: FewShotTasks, tmp_path: Path) -> None:
    """With one step size throughout, as if it had been begun so; killed or not."""
    like = {"outer_lr": 0.5, "outer_lr_final": 0.5}

    def of(length: int, **more: Any) -> dict[str, Any]:
        return {**RECIPE, "train": {"length": length, **more}}

    def opened(length: int, **more: Any) -> Run:
        return Run(tmp_path / "run", of(length, **more), lengths=("train.length",))

    whole, _ = meta_train(engine(), tasks, Settings(6, 2, **like))
    meta_train(engine(), tasks, Settings(2, 2, **like), run=opened(2))
    refused(opened(4), "length 2 there, 4 here", resume=False)
    refused(Run(tmp_path / "run", of(4)), "length 2 there, 4 here", resume=True)
    refused(opened(4, other=1), "other settings", resume=True)
    params, last = meta_train(engine(), tasks, Settings(4, 2, **like), run=opened(4), resume=True)
    assert (last.iteration, last.total) == (4, 4)
    kept = json.loads((tmp_path / "run/recipe.json").read_text())
    assert kept == json.loads(json.dumps({**of(4), "began": {"train.length": 2}}))
    for length, said in ((1, "length 4 there, 1 here"), (3, "has done 4; expected as many or")):
        run, before = opened(length), (tmp_path / "run/recipe.json").read_bytes()
        with pytest.raises(InputError, match=said):
            meta_train(engine(), tasks, Settings(length, 2, **like), run=run, resume=True)
        assert (tmp_path / "run/recipe.json").read_bytes() == before
    strict = Run(tmp_path / "run", of(4))  # a result's command says all that made it
    refused(strict, r'was prolonged \(began with \{"train.length": 2\}\)', resume=True)
    strict.close()
    # One is asked for by mistake, and the process is stopped before it did anything.
    run = opened(600)
    run.open(resume=True)
    run.settle()
    run.close()
    params, last = meta_train(engine(), tasks, Settings(6, 2, **like), run=opened(6), resume=True)
    assert last.iteration == 6
    same(params, whole)
    kept = json.loads((tmp_path / "run/recipe.json").read_text())
    assert kept["began"] == {"train.length": 2}
    for damaged in (3, [1], {"train.length": "x"}):
        (tmp_path / "run/recipe.json").write_text(json.dumps({**kept, "began": damaged}))
        refused(opened(6), "recipe.json holds no settings", resume=True)


def test_settings_too_large_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path / "run", RECIPE).open(resume=False)
    monkeypatch.setattr("tegu.engine.run.LARGEST", 3)
    refused(Run(tmp_path / "run", RECIPE), r"recipe.json holds no settings", resume=True)


def test_only_the_job_that_began_a_run_goes_on_untold(tmp_path: Path) -> None:
    def opened(job: str, *, resume: bool) -> None:
        run = Run(tmp_path / "run", RECIPE, job=job)
        run.open(resume=resume)
        run.close()

    mark = tmp_path / "run/job"
    opened("a", resume=False)
    opened("a", resume=False)
    for other in ("b", ""):
        refused(Run(tmp_path / "run", RECIPE, job=other), r"holds a run already", resume=False)
    opened("b", resume=True)
    assert mark.read_text() == "b"
    refused(Run(tmp_path / "run", RECIPE, job="a"), r"holds a run already", resume=False)
    opened("", resume=True)
    assert not mark.exists()


def test_a_checkpoint_from_another_run_is_not_taken(tasks: FewShotTasks, tmp_path: Path) -> None:
    for name, recipe in (("a", RECIPE), ("b", {"seed": 9})):
        meta_train(engine(), tasks, Settings(1, 1), run=Run(tmp_path / name, recipe))
    a, b = (Run(tmp_path / n, r) for n, r in (("a", RECIPE), ("b", {"seed": 9})))
    a.checkpoint.write_bytes(b.checkpoint.read_bytes())
    with pytest.raises(InputError, match=r"checkpoint.safetensors belongs to other settings"):
        meta_train(engine(), tasks, Settings(1, 1), run=a, resume=True)


def test_a_damaged_checkpoint_is_told_and_kept(tasks: FewShotTasks, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", RECIPE)
    meta_train(engine(), tasks, Settings(1, 1), run=run)
    data = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(data[:-9])
    refused(Run(tmp_path / "run", RECIPE), r"cut short or not a checkpoint", resume=True)


def test_what_a_kill_in_the_first_write_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".recipe.json.k2f9").write_text("{")
    assert Run(tmp_path, RECIPE).open(resume=False) is None
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.json"]


def test_metrics_of_lost_iterations_are_dropped(tasks: FewShotTasks, tmp_path: Path) -> None:
    run = Run(tmp_path, RECIPE)
    meta_train(
        engine(), tasks, Settings(4, 1, validate_every=2), run=run, validate=lambda params: 0.5
    )
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "loss": 1.0}\n{"iterat')
    again = Run(tmp_path, RECIPE)
    assert again.open(resume=True) is not None
    again.log(iteration=5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4, 5]
    assert lines[0].keys() == {"iteration", "loss", "validation", "seconds"}
    assert lines[1]["validation"] == 0.5


def test_a_folder_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    """A lock of the system's, which ends with the process that has it."""
    first, second = Run(tmp_path / "run", RECIPE), Run(tmp_path / "run", RECIPE)
    first.open(resume=False)
    with pytest.raises(InputError, match=r"another process is at work in .*run; .*Wait for"):
        second.open(resume=True)
    first.close()
    second.open(resume=True)
    second.close()


def test_a_checkpoint_never_holds_an_infinite_optimiser(
    tasks: FewShotTasks, tmp_path: Path
) -> None:
    """A gradient whose square is no number would hold its weight for ever."""
    run = Run(tmp_path, RECIPE)
    maml = Maml(model=Mlp(6, 3, hidden=(4,)), loss=steep, inner_lr=1e-30)
    settings = Settings(3, 2, outer_lr=1e-3, checkpoint_seconds=0.0)
    with pytest.raises(InputError, match=r"'outer/v/.*' holds NaN or infinity after iteration 1"):
        meta_train(Vectorised(maml), replace(tasks, n_query=1), settings, run=run)
    assert not run.checkpoint.exists()


def steep(outputs: Tensor, target: Examples) -> Tensor:
    return 1e25 * outputs.mean()


def test_a_checkpoint_of_another_model_is_not_taken(tasks: FewShotTasks, tmp_path: Path) -> None:
    meta_train(engine(), tasks, Settings(2, 1), run=Run(tmp_path, RECIPE))
    wider = Vectorised(Reptile(model=Mlp(6, 3, hidden=(9,))))
    with pytest.raises(InputError, match="holds other parameters than this learner has"):
        meta_train(wider, tasks, Settings(3, 1), run=Run(tmp_path, RECIPE), resume=True)


def test_losses_that_are_no_numbers(tasks: FewShotTasks, tmp_path: Path) -> None:
    run = Run(tmp_path, RECIPE)
    wild = engine(inner_optimiser="sgd", inner_lr=1e38)
    text = r"(training loss is (nan|inf) at|holds NaN or infinity after) iteration .*Lower inner_lr"
    with pytest.raises(InputError, match=text):
        meta_train(wild, tasks, Settings(5, 2), run=run)
    assert not run.checkpoint.exists()


def test_a_checkpoint_never_holds_nan(tasks: FewShotTasks, tmp_path: Path) -> None:
    """Checkpoints may be due before the loss is looked at."""
    run = Run(tmp_path, RECIPE)
    wild = engine(inner_optimiser="sgd", inner_lr=1e38, inner_steps=3)
    with pytest.raises(InputError, match=r"holds NaN or infinity after iteration 1;.*unharmed"):
        meta_train(wild, tasks, Settings(5, 2, checkpoint_seconds=0.0), run=run)
    assert not run.checkpoint.exists()


def test_reports(tasks: FewShotTasks) -> None:
    seen: list[Progress] = []
    meta_train(
        engine(),
        tasks,
        Settings(BLOCK + 8, 1, validate_every=15),
        validate=lambda params: float(len(params)),
        progress=lambda report: seen.append(replace(report)),
    )
    assert [report.iteration for report in seen] == [15, 30, 40]
    assert {report.total for report in seen} == {BLOCK + 8}
    assert {report.validation for report in seen} == {9.0}  # four weights, four squares, a count
    assert all(0 < report.loss < 10 for report in seen)
    assert [r.seconds for r in seen] == sorted(r.seconds for r in seen)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"meta_iterations": 0}, r"meta_iterations is 0; expected at least 1\. Raise"),
        ({"meta_batch": 0}, r"meta_batch is 0; expected at least 1"),
        ({"validate_every": -1}, r"validate_every is -1; expected at least 0"),
        ({"outer_lr": -0.1}, r"outer_lr is -0\.1; expected at least 0"),
        ({"outer_lr_final": math.nan}, r"outer_lr_final is nan"),
        ({"seconds": -1.0}, r"seconds is -1"),
        ({"workers": -1}, r"workers is -1"),
        ({"checkpoint_seconds": -1.0}, r"checkpoint_seconds is -1"),
        ({"checkpoint_seconds": math.inf}, r"checkpoint_seconds is inf"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Settings(**{"meta_iterations": 1, **settings})


def test_metrics_that_are_no_metrics(tmp_path: Path) -> None:
    """A last line cut short is what a machine that stopped leaves; no other line is."""
    file = tmp_path / "metrics.jsonl"
    assert read_metrics(file) == []
    good = b'{"iteration": 2, "loss": 1.0}\n'
    file.write_bytes(good + b'{"iterat')
    assert read_metrics(file) == [{"iteration": 2, "loss": 1.0}]
    for bad in (b"\x00\xff\n", b"[1]\n", b"5\n", b'{"iteration": "2"}\n', b"{}\n", b"[" * 99_999):
        file.write_bytes(good + bad + b"\n" + good)
        with pytest.raises(InputError, match=r"line 2 of .*metrics.jsonl holds no figures of a"):
            read_metrics(file)


def test_a_resumed_run_wants_its_metrics_whole(tasks: FewShotTasks, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", RECIPE)
    meta_train(engine(), tasks, Settings(1, 1), run=run)
    (run.folder / "metrics.jsonl").write_bytes(b"\xff\n\xff\n")
    refused(Run(run.folder, RECIPE), r"line 1 of .*metrics.jsonl holds no figures", resume=True)


def test_metrics_that_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tegu.engine.run.LARGEST", 10)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 2}\n')
    with pytest.raises(InputError, match="has 17 bytes; expected at most 10"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_run_by_time_ends_in_time_and_falls_to_the_last_step_size(
    tasks: FewShotTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that counts tenths of a second at each look: the share of time sets the rate."""
    now = iter(range(10_000))
    monkeypatch.setattr("tegu.engine.train.time.monotonic", lambda: next(now) / 10)
    rates: list[float] = []
    ours = engine()
    plain = ours.update

    def watched(*args: Any, outer_lr: float, done: float) -> Any:
        rates.append(outer_lr)
        return plain(*args, outer_lr=outer_lr, done=done)

    monkeypatch.setattr(ours, "update", watched)
    _, last = meta_train(ours, tasks, Settings(1000, 2, outer_lr=1.0, seconds=6.0))
    assert last.seconds >= 6.0
    assert last.iteration == len(rates) < 60
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.95
    assert rates[-1] < 0.1


def test_a_run_by_time_that_has_ended_stays_as_it_is(
    tasks: FewShotTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10_000))
    monkeypatch.setattr("tegu.engine.train.time.monotonic", lambda: next(now) / 10)
    settings = Settings(1000, 2, seconds=6.0)
    params, last = meta_train(engine(), tasks, settings, run=Run(tmp_path, RECIPE))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    again, report = meta_train(engine(), tasks, settings, run=Run(tmp_path, RECIPE), resume=True)
    same(again, params)
    assert report.iteration == last.iteration < 60
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "notes", [{"losses": 5}, {"seconds": "long"}, {"peak_bytes": []}, {"commits": 3}]
)
def test_notes_that_are_none(notes: dict[str, Any], tasks: FewShotTasks, tmp_path: Path) -> None:
    """They lie outside of the digest."""
    run = Run(tmp_path / "run", RECIPE)
    meta_train(engine(), tasks, Settings(2), run=run)
    save_checkpoint(run.checkpoint, replace(load_checkpoint(run.checkpoint), notes=notes))
    with pytest.raises(InputError, match="with notes that are none of a run's"):
        meta_train(engine(), tasks, Settings(4), run=Run(tmp_path / "run", RECIPE), resume=True)


def test_parameters_keep_their_order(tasks: FewShotTasks, tmp_path: Path) -> None:
    """A file has none, and sums over parameters round as their order has it."""
    run = Run(tmp_path / "run", RECIPE)
    params, _ = meta_train(engine(), tasks, Settings(2), run=run)
    saved = load_checkpoint(run.checkpoint)
    turned = replace(saved, params=dict(reversed(saved.params.items())))
    save_checkpoint(run.checkpoint, turned)
    again, _ = meta_train(
        engine(), tasks, Settings(4), run=Run(tmp_path / "run", RECIPE), resume=True
    )
    assert list(again) == list(params)


class Ending:
    """Tasks whose drawing, where another process does it, ends that one and signals the run."""

    def __init__(self, tasks: FewShotTasks, run: int) -> None:
        self.tasks, self.run, self.split = tasks, run, tasks.split

    def episodes(self, index: Tensor) -> Episode:
        if os.getpid() != self.run:
            os.kill(self.run, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.tasks.episodes(index)


def test_a_signal_to_all_processes_is_one_to_the_run(tasks: FewShotTasks, tmp_path: Path) -> None:
    """As `timeout` and schedulers send it: what draws the tasks ends as well."""

    run = Run(tmp_path / "run", RECIPE)
    ending = Ending(tasks, os.getpid())
    with pytest.raises(Interrupted, match="stopped by SIGTERM after iteration 1"):
        meta_train(engine(), ending, Settings(1000, workers=1), run=run)
    assert load_checkpoint(run.checkpoint).iteration == 1


def test_two_that_begin_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second, which comes while the first writes its settings, is told so and writes none."""
    first, second = Run(tmp_path / "run", RECIPE), Run(tmp_path / "run", {**RECIPE, "seed": 4})

    def disturbed(path: Path, data: bytes) -> None:
        with pytest.raises(InputError, match="another process is at work"):
            second.open(resume=False)
        write_atomically(path, data)

    monkeypatch.setattr("tegu.engine.run.write_atomically", disturbed)
    first.open(resume=False)
    assert json.loads((first.folder / "recipe.json").read_text())["seed"] == 3
    first.close()


@pytest.mark.parametrize("validated", [False, True])
def test_a_signal_in_the_last_iteration_is_heeded(
    validated: bool, tasks: FewShotTasks, tmp_path: Path
) -> None:
    """After it a command would go on to score."""
    settings = Settings(3, 2, validate_every=3 if validated else 0)
    run, real = Run(tmp_path / "r", RECIPE), Vectorised.update

    class Pressed(Vectorised):
        def update(self, *args: Any, done: float, **more: Any) -> Any:
            if done > 0.5:
                signal.raise_signal(signal.SIGTERM)
            return real(self, *args, done=done, **more)

    with pytest.raises(Interrupted) as info:
        meta_train(Pressed(engine().learner), tasks, settings, run=run, validate=lambda _: 0.5)
    assert info.value.iteration == 3
    assert load_checkpoint(run.checkpoint).iteration == 3


def test_a_run_keeps_to_the_precision_that_it_began_with(
    tasks: FewShotTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, or a busy one, "auto" may choose another."""
    settings, seen = Settings(4, 2), []
    learner = engine().learner

    def told(report: Progress) -> None:
        seen.append(report.precision)
        if len(seen) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("tegu.engine.precision.half_pays", lambda _: True)
    with pytest.raises(Interrupted):
        meta_train(
            Vectorised(learner, precision="auto"),
            tasks,
            replace(settings, validate_every=1),
            run=Run(tmp_path / "r", RECIPE),
            progress=told,
        )
    monkeypatch.setattr("tegu.engine.precision.half_pays", lambda _: False)
    meta_train(
        Vectorised(learner, precision="auto"),
        tasks,
        replace(settings, validate_every=1),
        run=Run(tmp_path / "r", RECIPE),
        resume=True,
        progress=told,
    )
    assert set(seen) == {"bf16"}


def test_logged_losses_are_of_all_iterations_since_the_last(
    tasks: FewShotTasks, tmp_path: Path
) -> None:
    """Reports come more often than rows of the metrics."""
    reports: list[tuple[int, float]] = []
    every = 2 * BLOCK + 5
    settings = Settings(2 * every, 1, validate_every=every)
    run = Run(tmp_path / "r", RECIPE)
    meta_train(
        engine(),
        tasks,
        settings,
        run=run,
        validate=lambda _: 0.5,
        progress=lambda report: reports.append((report.iteration, report.loss)),
    )
    total, before, expected = 0.0, 0, []
    for iteration, loss in reports:
        total, before = total + loss * (iteration - before), iteration
        if iteration % every == 0:
            expected.append(total / every)
            total = 0.0
    found = [row["loss"] for row in read_metrics(tmp_path / "r" / "metrics.jsonl")]
    assert found == pytest.approx(expected)
    assert len(found) == 2


def test_parameters_too_coarse_to_train(tasks: FewShotTasks) -> None:
    half = Vectorised(Reptile(model=Mlp(6, 3, hidden=(8,)).bfloat16()))
    with pytest.raises(InputError, match=r"in torch\.bfloat16, in which small updates"):
        meta_train(half, tasks, Settings(1, 1))


def test_a_run_of_another_dtype_is_not_gone_on_with(tasks: FewShotTasks, tmp_path: Path) -> None:
    meta_train(engine(), tasks, Settings(2, 1), run=Run(tmp_path / "r", RECIPE))
    double = Vectorised(Reptile(model=Mlp(6, 3, hidden=(8,)).double(), inner_lr=0.01))
    with pytest.raises(InputError, match="holds other parameters"):
        meta_train(double, tasks, Settings(2, 1), run=Run(tmp_path / "r", RECIPE), resume=True)


def test_tasks_whose_targets_are_not_the_learner_s(tasks: FewShotTasks) -> None:
    regression = Vectorised(Reptile(model=Mlp(6, 2, hidden=(8,)), loss=gaussian))
    with pytest.raises(
        InputError, match=r"targets of torch\.int64, shape \(6,\), for the loss `gaussian`"
    ):
        meta_train(regression, tasks, Settings(1, 1))
