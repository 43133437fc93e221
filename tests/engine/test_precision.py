from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest
import torch

from tegu.engine import precision
from tegu.engine.precision import chosen, half_pays
from tegu.engine.vectorise import Vectorised
from tegu.errors import InputError
from tegu.learners import ProtoNet
from tegu.models import Mlp

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    half_pays.cache_clear()
    yield
    half_pays.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, *, full: float, half: float) -> list[str]:
    """A machine whose products take so many seconds; the list fills with what it was asked."""
    asked: list[str] = []

    def product(name: str, device: torch.device, n: int, *, times: int) -> float:
        asked.extend([name] * times)
        return full if name == "fp32" else half

    monkeypatch.setattr(precision, "product", product)
    return asked


@pytest.mark.parametrize(("full", "half", "expected"), [(2, 1, "bf16"), (1, 2, "fp32")])
def test_auto_is_the_faster(
    monkeypatch: pytest.MonkeyPatch, full: float, half: float, expected: str
) -> None:
    machine(monkeypatch, full=full, half=half)
    assert chosen("auto", CPU) == expected
    assert Vectorised(ProtoNet(model=Mlp(2, 3)), precision="auto").precision == expected


def test_a_machine_without_bf16_is_asked_twice_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product in software can take a second."""
    asked = machine(monkeypatch, full=0.001, half=1.0)
    assert [chosen("auto", CPU) for _ in range(3)] == ["fp32"] * 3
    assert asked.count("bf16") == 2


def test_one_slow_product_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count()

    def product(name: str, device: torch.device, n: int, *, times: int) -> float:
        return 2.0 if name == "fp32" else 1.0 if next(calls) % 3 == 1 else 5.0

    monkeypatch.setattr(precision, "product", product)
    assert chosen("auto", CPU) == "bf16"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_that_is_named_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = machine(monkeypatch, full=1, half=1)
    assert chosen(name, CPU) == name
    assert not asked


def test_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool) -> bool:
        return not including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert chosen("auto", torch.device("cuda")) == "bf16"
    assert chosen("auto", torch.device("meta")) == "fp32"


def test_measured_here() -> None:
    assert chosen("auto", CPU) in ("fp32", "bf16")
    learner = ProtoNet(model=Mlp(2, 3))
    auto = Vectorised(learner, precision="auto")
    assert str(auto).endswith(auto.precision)
    assert auto.of(replace(learner, normalisation="support")).precision == auto.precision


def test_unknown() -> None:
    with pytest.raises(InputError, match=r"unknown precision 'fp8'.*auto, bf16, fp32"):
        chosen("fp8", CPU)
