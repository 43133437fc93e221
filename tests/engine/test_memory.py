"""Freed memory is kept while tegu works, and given back after."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tegu.datasets.classes import ClassDataset
from tegu.engine import memory
from tegu.engine.evaluate import evaluate
from tegu.engine.memory import kept
from tegu.engine.train import Progress, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.learners import Reptile
from tegu.models import Mlp
from tegu.sampling import FewShotTasks


@pytest.fixture(autouse=True)
def glibc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for name in memory._OWN:
        monkeypatch.delenv(name, raising=False)
    memory._library.cache_clear()
    if not sys.platform.startswith("linux") or memory._library() is None:
        pytest.skip("the C library is not glibc")
    yield
    memory._library.cache_clear()


# In a process of its own: one that was once refused memory takes it from elsewhere from then on.
USE = """
import resource
from pathlib import Path
import torch
from tegu.engine import memory
from tegu.engine.memory import kept

BLOCK = 16 << 20  # floats of 64 MB, which the C library gives back as soon as they are freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(BLOCK)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) << 10 for x in lines if x.startswith("VmRSS:"))

outside, before = faults(), held()
with kept():
    torch.ones(BLOCK)
    assert faults() < outside / 10
    with kept():
        pass
    assert faults() < outside / 10, "the inner one took the outer one's with it"
    assert held() - before > BLOCK * 4 / 2
assert abs(held() - before) < BLOCK * 4 / 2
assert faults() > outside / 2
try:
    with kept():
        torch.ones(BLOCK)
        raise ZeroDivisionError
except ZeroDivisionError:
    assert held() - before < BLOCK * 4 / 2, "an error kept it"
assert memory._inside == 0
"""


def test_the_same_memory_is_used_again_and_given_back_at_the_end() -> None:
    found = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "65536"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=65536")],
)
def test_what_the_user_told_the_library_is_left_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    memory._library.cache_clear()
    with kept():
        assert memory._inside == 0


def test_where_address_space_is_limited_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (1 << 40, 1 << 40))
    memory._library.cache_clear()
    with kept():
        assert memory._inside == 0


def test_a_c_library_without_such_settings_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    memory._library.cache_clear()
    with kept():
        assert memory._inside == 0


def test_training_and_evaluation_keep_it(toy_data: ClassDataset) -> None:
    engine = Vectorised(Reptile(model=Mlp(6, 3, hidden=(8,)), inner_steps=2, inner_batch=3))
    tasks = FewShotTasks(toy_data, n_way=3, n_shot=2, n_query=1)
    seen: list[int] = []

    def told(progress: Progress) -> None:
        seen.append(memory._inside)

    params, _ = meta_train(engine, tasks, Settings(meta_iterations=2), progress=told)
    evaluate(
        engine, params, tasks, episodes=2, progress=lambda done, mean: seen.append(memory._inside)
    )
    assert seen == [1, 1]
    assert memory._inside == 0
