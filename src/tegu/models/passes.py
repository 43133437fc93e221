"""Passes through a module under other tensors than its own, by whichever names it holds them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from tegu.models.norm import spoken_for


class Survey(NamedTuple):
    """What a pass has to know of a module.

    Attributes:
        parameters, buffers: by their first names.
        tied: other names of the same tensors in other layers, and the first name of each.
        foreign: whether `tegu.models.norm.statistics` has to speak for a layer.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    tied: dict[str, str]
    foreign: bool


def survey(module: nn.Module) -> Survey:
    """One walk through a module, where several are a third of the time of a small network."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    met: dict[int, str] = {}
    foreign = False
    for place, layer in module.named_modules():
        foreign = foreign or spoken_for(layer)
        prefix = f"{place}." if place else ""
        for kept, found in ((layer._parameters, parameters), (layer._buffers, buffers)):
            for own, value in kept.items():
                if value is None:
                    continue
                name = prefix + own
                if id(value) in met:
                    tied[name] = met[id(value)]
                else:
                    met[id(value)] = name
                    found[name] = value
    return Survey(parameters, buffers, tied, foreign)


def passed(
    module: nn.Module, values: dict[str, Tensor], given: tuple[Any, ...], tied: dict[str, str]
) -> Any:
    """The module's answer under some values, by the names of a `Survey`.

    torch's own way with tied names sets a layer that is held under two of them twice, and leaves
    the values in it (torch 2.13).
    """
    others = {name: values[first] for name, first in tied.items() if first in values}
    return functional_call(module, {**values, **others}, given, tie_weights=False)
