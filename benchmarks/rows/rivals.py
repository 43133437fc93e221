"""The rivals: how they are installed, and what a user of each would write.

Some parts of these packages need other packages that this comparison does not, or do not
build any more; so only the modules that are used are imported, without the `__init__`
of their packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

ROOT = Path(__file__).resolve().parents[2]
PINNED = ("higher==0.2.1", "torchopt==0.7.3", "easyfsl==1.5.0")
LEARN2LEARN = "learn2learn==0.2.0"  # does not build: its sources are put on the path
Loss = Callable[[Tensor, Tensor], Tensor]
# From a network, a loss, a step size and a number of steps: a function that leaves the
# gradient of the mean query loss of tasks (support x, y, query x, y) in the network.
Adapter = Callable[[nn.Module, Loss, float, int], Callable[..., None]]


def install(folder: Path) -> Path:
    """Makes an environment with tegu and its rivals in it; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = [str(python), "-m", "pip"]
    pins = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "install", *pins, "-e", str(ROOT), "setuptools"], check=True)
    subprocess.run([*pip, "install", *pins, *PINNED], check=True)
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    only = LEARN2LEARN.partition("=")[0]
    subprocess.run(
        [*pip, "download", "--no-deps", "--no-binary", only, "-d", str(source), LEARN2LEARN],
        check=True,
    )
    (archive,) = source.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):
            file.extractall(source, filter="data")
        else:
            file.extractall(source)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    told = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    unpacked = archive.name.removesuffix(".tar.gz")
    path = Path(told.stdout.strip()) / "learn2learn.pth"
    path.write_text(f"{(source / unpacked).resolve()}\n")
    return python


def have(name: str) -> bool:
    """Whether a rival is there; a plain loop always is."""
    there = name in sys.modules or importlib.util.find_spec(name) is not None
    return name not in ADAPTERS_OF or there


ADAPTERS_OF = ("learn2learn", "higher", "torchopt", "easyfsl")


def module(name: str) -> Any:
    """A module of a rival, without what the packages around it import."""
    package, *inner = name.split(".")[:-1]
    shells = sys.modules.get(package)
    if shells is None:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(package)
        places = list(spec.submodule_search_locations)
    else:
        places = list(shells.__path__)
    folder, path = Path(next(iter(places))), package
    for part in ("", *inner):
        if part:
            folder, path = folder / part, f"{path}.{part}"
        if path not in sys.modules:
            shell = types.ModuleType(path)
            shell.__path__ = [str(folder)]
            sys.modules[path] = shell
    return importlib.import_module(name)


def plain(model: nn.Module, loss: Loss, lr: float, steps: int) -> Callable[..., None]:
    """Task after task in plain PyTorch, second derivatives by `create_graph`."""
    names = [name for name, _ in model.named_parameters()]

    def iterate(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> None:
        for task in range(len(x)):
            weights: dict[str, Tensor] = dict(model.named_parameters())
            for _ in range(steps):
                value = loss(functional_call(model, weights, (x[task],)), y[task])
                grads = torch.autograd.grad(value, list(weights.values()), create_graph=True)
                moved = zip(names, weights.values(), grads, strict=True)
                weights = {name: p - lr * g for name, p, g in moved}
            asked = functional_call(model, weights, (query_x[task],))
            (loss(asked, query_y[task]) / len(x)).backward()

    return iterate


def learn2learn(model: nn.Module, loss: Loss, lr: float, steps: int) -> Callable[..., None]:
    maml = module("learn2learn.algorithms.maml").MAML(model, lr=lr)

    def iterate(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> None:
        for task in range(len(x)):
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(loss(learner(x[task]), y[task]))
            (loss(learner(query_x[task]), query_y[task]) / len(x)).backward()

    return iterate


def higher(model: nn.Module, loss: Loss, lr: float, steps: int) -> Callable[..., None]:
    import higher as package

    optimiser = torch.optim.SGD(model.parameters(), lr=lr)

    def iterate(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> None:
        for task in range(len(x)):
            with package.innerloop_ctx(model, optimiser, copy_initial_weights=False) as (net, opt):
                for _ in range(steps):
                    opt.step(loss(net(x[task]), y[task]))
                (loss(net(query_x[task]), query_y[task]) / len(x)).backward()

    return iterate


def torchopt(model: nn.Module, loss: Loss, lr: float, steps: int) -> Callable[..., None]:
    import torchopt as package

    optimiser = package.MetaSGD(model, lr=lr)

    def iterate(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> None:
        weights = package.extract_state_dict(model, by="reference")
        state = package.extract_state_dict(optimiser)
        for task in range(len(x)):
            for _ in range(steps):
                optimiser.step(loss(model(x[task]), y[task]))
            (loss(model(query_x[task]), query_y[task]) / len(x)).backward()
            package.recover_state_dict(model, weights)
            package.recover_state_dict(optimiser, state)

    return iterate


MAML: dict[str, Adapter] = {
    "plain loop": plain,
    "learn2learn": learn2learn,
    "higher": higher,
    "torchopt": torchopt,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of packages that nobody maintains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
