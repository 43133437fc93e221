"""Several processes do what one does: same episodes, same updates, same figures, same end.

This file is also what the processes of these tests run: with a folder as its argument it plays
every scene below as one of the ranks, and writes what it found there.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import HashStore

from tegu import keys, recipes
from tegu.datasets.classes import ClassDataset
from tegu.engine.checkpoint import load_checkpoint
from tegu.engine.distribute import ALONE, Meeting, Ranks, joined, name_of_start, surroundings
from tegu.engine.evaluate import evaluate
from tegu.engine.run import Run
from tegu.engine.train import Interrupted, Settings, meta_train
from tegu.engine.trees import map_tensors
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode
from tegu.errors import InputError
from tegu.inner import Params
from tegu.job import Job
from tegu.learners import FineTune, Learner, Maml, ProtoNet, Reptile
from tegu.models import Conv4, Mlp
from tegu.sampling import FewShotTasks, Tasks

RECIPE = {"what": "a test"}
Found = dict[str, Tensor]


def data(*shape: int, dtype: torch.dtype = torch.float64) -> ClassDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, *shape, generator=generator, dtype=torch.float64)
    x = x + 2 * torch.randn(6, *shape, generator=generator, dtype=torch.float64).repeat_interleave(
        10, 0
    )
    return ClassDataset("toy", "meta_train", x.to(dtype), torch.tensor([10] * 6), tuple("abcdef"))


def tasks(n_query: int = 2, dtype: torch.dtype = torch.float64) -> FewShotTasks:
    return FewShotTasks(data(6, dtype=dtype), n_way=3, n_shot=2, n_query=n_query)


def mlp(seed: int = 0) -> Mlp:
    torch.manual_seed(seed)
    return Mlp(6, 3, hidden=(8,)).double()


def maml() -> Maml:
    return Maml(model=mlp(), inner_steps=2, inner_lr=0.1, inner_batch=0)


def reptile(**settings: Any) -> Reptile:
    return Reptile(
        model=mlp(), **{"inner_steps": 2, "inner_batch": 3, "inner_lr": 0.01, **settings}
    )


@dataclass(frozen=True, kw_only=True)
class Middle(FineTune):
    """Moves to the middle one of the adapted weights: no sum over tasks."""

    name: ClassVar[str] = "middle"

    def outer_update(self, params: Params, states: Any, *, outer_lr: float) -> Params:
        middles = {k: states["weights"][k].median(0).values for k in params}
        return {k: torch.lerp(p, middles[k], outer_lr) for k, p in params.items()}


@dataclass(frozen=True)
class Doubled:
    """Tasks in float64."""

    tasks: Tasks

    @property
    def split(self) -> str:
        return self.tasks.split

    def episodes(self, index: Tensor) -> Episode:
        def wide(x: Tensor) -> Tensor:
            return x.double() if x.is_floating_point() else x

        found: Episode = map_tensors(wide, self.tasks.episodes(index))
        return found


@dataclass(frozen=True)
class Spoilt:
    """Tasks of which one holds NaN."""

    tasks: Tasks
    number: int
    split: str = "meta_train"

    def episodes(self, index: Tensor) -> Episode:
        found = self.tasks.episodes(index)
        support = found.support
        bad = (index == self.number).reshape(-1, *[1] * (support.x.ndim - 1))
        return found._replace(support=support._replace(x=support.x.masked_fill(bad, math.nan)))


@dataclass(frozen=True)
class Signalling:
    """Tasks that send this process a signal when it draws a certain episode."""

    tasks: Tasks
    number: int
    split: str = "meta_train"

    def episodes(self, index: Tensor) -> Episode:
        if (index == self.number).any():
            os.kill(os.getpid(), signal.SIGTERM)
        return self.tasks.episodes(index)


def trained(ranks: Ranks, learner: Learner, tasks: Tasks, meta_batch: int = 3) -> Found:
    settings = Settings(5, meta_batch, outer_lr=0.1, seed=4)
    before = learner.init()
    params, report = meta_train(Vectorised(learner), tasks, settings, ranks=ranks)
    moved = max(float((params[k] - before[k]).abs().max()) for k in before)
    said = {"loss": report.loss, "moved": moved}
    return {**params, **{k: torch.tensor(v, dtype=torch.float64) for k, v in said.items()}}


def from_recipe(ranks: Ranks, name: str) -> Found:
    job = Job(recipes.load(name, {"train.meta_batch": 5}))
    job.learner.model.double()
    torch.set_default_dtype(torch.float64)
    try:
        return trained(ranks, job.learner, Doubled(job.training_tasks()), 5)
    finally:
        torch.set_default_dtype(torch.float32)


def protonet(ranks: Ranks) -> Found:
    torch.manual_seed(0)
    learner = ProtoNet(model=Conv4(0, size=8, width=4).double(), normalisation="running")
    return trained(ranks, learner, FewShotTasks(data(1, 8, 8), 3, 2, 2), 5)


def gradient(ranks: Ranks) -> Found:
    """What plain gradient descent would subtract, in single precision."""
    learner = maml()
    learner.model.float()
    engine, some = Vectorised(learner), tasks(dtype=torch.float32)
    index = torch.arange(7)[ranks.part(7)]
    at = keys.fold(keys.key(0), index)
    found = engine.outer_gradient(learner.init(), some.episodes(index), at)
    grads, loss = Meeting(ranks, 7, lambda: [0.0]).mean(found)
    return {**grads, "loss": loss}


def gathered(ranks: Ranks) -> Found:
    """States of every kind, in the order of the tasks."""
    own = torch.arange(5)[ranks.part(5)]
    state = {
        "weights": (own[:, None] + 1) * torch.tensor([1.5, -0.0, math.inf]),
        "support": (own[:, None, None] > torch.ones(2, 3, dtype=torch.long), own.double() / 3),
        "nothing": torch.zeros(len(own), 0),
        "count": own * (1 << 60),
        "half": (own / 3).bfloat16(),
    }
    meeting = Meeting(ranks, 5, lambda: [1.0 + ranks.rank, 0.1])
    state = meeting.gather(state)
    told = torch.tensor(meeting.told(), dtype=torch.float64)
    mask, thirds = state.pop("support")
    return {**state, "mask": mask, "thirds": thirds, "told": told}


def scored(ranks: Ranks) -> Found:
    engine, rows = Vectorised(maml()), []
    for at_once in (3, 100):
        (one,) = evaluate(
            engine, engine.learner.init(), tasks(), episodes=20, at_once=at_once, ranks=ranks
        )
        rows.append([one.value, one.ci95, one.episodes])
    return {"rows": torch.tensor(rows, dtype=torch.float64)}


SCENES: dict[str, Callable[[Ranks], Found]] = {
    "maml": lambda ranks: trained(ranks, maml(), tasks()),
    "protonet": protonet,
    "reptile": lambda ranks: trained(ranks, reptile(beta1=0.5), tasks()),
    "reptile-sgd": lambda ranks: trained(
        ranks, reptile(inner_optimiser="sgd", momentum=0.5, carry=True), tasks(0), 7
    ),
    "middle": lambda ranks: trained(ranks, Middle(model=mlp(), inner_batch=0), tasks(), 5),
    "causal-transfer": lambda ranks: from_recipe(ranks, "causal-transfer-categories"),
    "causal-graph": lambda ranks: from_recipe(ranks, "causal-graph-chain"),
    "gradient": gradient,
    "gathered": gathered,
    "scored": scored,
}


# What the processes do; `play` is called in each of them.


def stopped_and_resumed(ranks: Ranks, folder: Path) -> Found:
    """A signal to rank 1 ends both; rank 0 alone has a folder to go on from."""
    settings = Settings(9, 3, outer_lr=0.5, seed=4, validate_every=3)
    own = tasks()
    run = Run(folder / f"run-of-{ranks.rank}", RECIPE)

    def train(tasks: Tasks, **more: Any) -> tuple[Params, Any]:
        return meta_train(
            Vectorised(reptile()), tasks, settings, ranks=ranks, validate=lambda params: 0.5, **more
        )

    with pytest.raises(Interrupted) as info:
        # Of episodes 12 to 14, iteration 4, the last two are rank 1's. Drawn in a block.
        train(Signalling(own, 13), run=run)
    stopped = info.value.iteration
    assert info.value.signum == signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resumed, report = train(own, run=run, resume=True)
    whole, _ = train(own)
    same = all(torch.equal(resumed[k], whole[k]) for k in whole)
    return {"resumed": torch.tensor([stopped, report.iteration, int(same)])}


def by_time(ranks: Ranks) -> Found:
    settings = Settings(1_000_000, 2, seconds=0.3)
    params, report = meta_train(Vectorised(reptile()), tasks(), settings, ranks=ranks)
    return {"by time": torch.tensor(report.iteration), "by time/w": params["head.weight"]}


def agree(ranks: Ranks, origin: int) -> None:
    with ranks.agreement():
        if ranks.rank == origin:
            raise InputError("a bad thing", "a good one", "Mend it.")


def refused(ranks: Ranks) -> list[str]:
    """Errors of one rank alone, as each rank has them."""
    found: list[InputError] = []
    for origin in (0, 1):
        with pytest.raises(InputError) as info:
            agree(ranks, origin)
        found.append(info.value)
    spoilt = Spoilt(tasks(), number=5)  # rank 1 draws it
    with pytest.raises(InputError) as info:
        meta_train(Vectorised(reptile()), spoilt, Settings(3, 2, seed=0), ranks=ranks)
    found.append(info.value)
    assert all(error.everywhere for error in found)
    return list(map(str, found))


def told(ranks: Ranks) -> Found:
    """What rank 0 alone has read, on each."""
    kinds = {
        "a/half": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        "b": torch.tensor(True),
        "c": torch.zeros(0, 3),
        "d": torch.tensor(1 << 60),
        "e": torch.arange(6.0).reshape(2, 3).T,
    }
    plain, (one, none) = ranks.from_first(lambda: ({"a": [1, None]}, (kinds, {})))
    assert plain == {"a": [1, None]}
    assert none == {}
    assert list(one) == list(kinds)
    for name, value in kinds.items():
        torch.testing.assert_close(one[name], value, rtol=0, atol=0)
    return {f"told/{name}": value.contiguous() for name, value in one.items()}


def play(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined() as ranks:
        found = {f"{n}:{k}": v for n, act in SCENES.items() for k, v in act(ranks).items()}
        found |= stopped_and_resumed(ranks, folder) | by_time(ranks) | told(ranks)
        messages = refused(ranks)
    (folder / f"{ranks.rank}.json").write_text(json.dumps(messages))
    save_file({k: v.contiguous() for k, v in found.items()}, folder / f"{ranks.rank}.safetensors")


def environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in sys.path if p)
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    return {**os.environ, **more}


LOOPBACK = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which two processes have played."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={
                **environment(),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "WORLD_SIZE": "2",
            },
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(300) for process in processes] == [0, 0]
        yield folder
    finally:
        for process in processes:
            process.kill()


def of(folder: Path, scene: str) -> tuple[Found, Found]:
    """What the two ranks found in a scene."""
    each = [load_file(folder / f"{rank}.safetensors") for rank in range(2)]
    first, second = (
        {k.split(":")[1]: v for k, v in one.items() if k.startswith(f"{scene}:")} for one in each
    )
    return first, second


@pytest.mark.parametrize("scene", SCENES)
def test_two_ranks_do_what_one_does(scene: str, two: Path) -> None:
    first, second = of(two, scene)
    expected = SCENES[scene](ALONE)
    assert first.keys() == expected.keys()
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    if scene == "gathered":
        assert first.pop("told").tolist() == pytest.approx([3.0, 0.2])
        expected.pop("told")
        torch.testing.assert_close(first, expected, rtol=0, atol=0)
        assert first["weights"][:, 1].signbit().all()  # of -0, which a sum with 0 would lose
    elif scene == "gradient":
        torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)
        assert max(float(v.abs().max()) for v in first.values()) > 0.1
    elif scene == "scored":
        torch.testing.assert_close(first["rows"][0], expected["rows"][0], rtol=0, atol=0)
        torch.testing.assert_close(first, expected)
    else:
        torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-10)
        assert float(first["moved"]) > 1e-3


def test_a_signal_to_one_rank_stops_all_and_a_folder_on_one_machine_is_enough(two: Path) -> None:
    each = [load_file(two / f"{rank}.safetensors")["resumed"].tolist() for rank in range(2)]
    assert each[0] == each[1]
    stopped, end, same = each[0]
    assert 0 < stopped < end == 9
    assert same == 1
    assert (two / "run-of-0").is_dir()
    assert not (two / "run-of-1").exists()


def test_ranks_end_together_when_time_is_over(two: Path) -> None:
    first, second = (load_file(two / f"{rank}.safetensors") for rank in range(2))
    assert 0 < int(first["by time"]) == int(second["by time"]) < 1_000_000
    torch.testing.assert_close(first["by time/w"], second["by time/w"], rtol=0, atol=0)


def test_what_is_refused_on_one_rank_is_refused_on_all(two: Path) -> None:
    first, second = (json.loads((two / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    here, there, loss = first
    assert here == "a bad thing; expected a good one. Mend it."
    assert there == "a bad thing (process 1 of 2); expected a good one. Mend it."
    assert loss.startswith("the training loss is nan at iteration 3")


@pytest.mark.parametrize(
    ("learner", "meta_batch", "text"),
    [
        (reptile(serial=True), 4, "Reptile with serial=True over 2 processes"),
        (reptile(), 1, "a meta_batch of 1 over 2 processes"),
    ],
)
def test_what_cannot_be_split(learner: Learner, meta_batch: int, text: str) -> None:
    with pytest.raises(InputError, match=text):
        meta_train(Vectorised(learner), tasks(), Settings(1, meta_batch), ranks=Ranks(0, 2))
    Ranks().check(learner, meta_batch)  # one process can


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=x"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": ""}, "MASTER_PORT="),
    ],
)
def test_surroundings_that_make_no_sense(
    variables: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=text):
        surroundings()


def test_each_start_has_a_name_of_its_own() -> None:
    """Over one store, in which each start finds what the one before has left."""
    store, names = HashStore(), set()
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            told = list(pool.map(lambda rank: name_of_start(store, rank, 3), range(3)))
            assert len(set(told)) == 1
            names.add(told[0])
    assert len(names) == 20


def test_a_process_that_does_not_come() -> None:
    store = HashStore()
    store.set("here/1", "of a dead process")
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(RuntimeError, match="process 1 of 2 has not come"):
        name_of_start(store, 0, 2)


def test_one_process_has_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch.distributed", None)  # an import would fail
    with joined() as ranks:
        assert ranks == ALONE
        assert float(trained(ranks, maml(), tasks())["moved"]) > 0


WORDS = (
    *("train", "--learner", "maml", "--data", "sinusoids", "--json"),
    *("--set", "train.validate_every=100", "--set", "train.checkpoint_seconds=0"),
)


@contextmanager
def started(folder: Path, *words: str, restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Two ranks, and none of them left behind whatever happens."""
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", "--", "tegu", *words],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="the device cuda:0 over 2 processes"):
        Ranks(0, 2).place("cuda:0")
    with pytest.raises(InputError, match=r"process 2 of a machine with 2 GPUs.*-node 2"):
        Ranks(2, 3, local=2).place("cuda")
    Ranks(3, 4, local=1).place("cuda")
    ALONE.place("cuda:0")
    Ranks(0, 2).place("cpu")
    assert chosen == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_killed_rank_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    words = [*WORDS, "--meta-iterations", "200"]
    with started(tmp_path, *words, "--run", "calm") as calm:
        out, err = calm.communicate(timeout=120)
    assert calm.returncode == 0, err
    assert json.loads(out)["meta_iterations"] == 200  # one of the two has printed

    checkpoint = tmp_path / "rough/checkpoint.safetensors"
    with started(tmp_path, *words, "--run", "rough", restarts=3) as rough:
        patience = time.monotonic() + 60
        while not checkpoint.exists():
            assert rough.poll() is None
            assert time.monotonic() < patience, "no checkpoint in a minute"
            time.sleep(0.02)
        ranks = Path(f"/proc/{rough.pid}/task/{rough.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        before = load_checkpoint(checkpoint).iteration
        _, err = rough.communicate(timeout=120)
    assert rough.returncode == 0, err
    assert before < 200, "it was killed too late to show anything"
    one, other = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("calm", "rough"))
    torch.testing.assert_close(other, one, rtol=0, atol=0)
    curves = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("calm", "rough")]
    rows = [[json.loads(line) for line in curve.splitlines()] for curve in curves]
    for row in [*rows[0], *rows[1]]:
        row.pop("seconds")
    assert rows[0] == rows[1]


def test_a_whole_recipe_by_two(tmp_path: Path) -> None:
    few = ("train.meta_iterations=4", "train.validate_every=2", "evaluate.episodes=6")
    words = [word for one in few for word in ("--set", one)]
    with started(
        tmp_path, "reproduce", "maml-sinusoids", *words, "--json", "--output", "result.json"
    ) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert json.loads((tmp_path / "result.json").read_text()) == document
    assert document["hardware"]["processes"] == 2
    assert document["cells"][0]["episodes"] == 6
    with started(tmp_path, "evaluate", "runs/maml-sinusoids", "--json", *words[-2:]) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["cells"] == document["cells"]


def test_bad_input_is_told_once(tmp_path: Path) -> None:
    with started(tmp_path, *WORDS, "--set", "learner.inner_lr=fast") as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("what to do:") == 1


if __name__ == "__main__":
    play(Path(sys.argv[1]))
