"""Work in processes of their own: what comes back, what is told, and that none is left behind."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from tegu import recipes
from tegu.errors import InputError
from tegu.processes import apart


def test_work_is_done_elsewhere() -> None:
    assert apart("one", os.getpid) != os.getpid()
    assert not multiprocessing.active_children()


def test_an_end_without_a_result_is_told() -> None:
    with pytest.raises(InputError, match=r"one ended without a result \(exit code 3\)"):
        apart("one", os._exit, 3)
    assert not multiprocessing.active_children()


def test_an_error_of_the_work_is_its_own() -> None:
    with pytest.raises(InputError, match="unknown recipe 'nothing'") as failure:
        apart("one", recipes.load, "nothing")
    assert failure.value.todo
    assert not multiprocessing.active_children()
