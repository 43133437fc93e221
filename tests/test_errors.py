"""Numbers within their bounds, and what is said of others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tegu.errors import InputError, InputTypeError, check_range


@pytest.mark.parametrize(
    ("value", "bounds", "text"),
    [
        (-1, {"least": 0}, "x is -1; expected at least 0. Raise x."),
        (11, {"least": 1, "most": 10}, "x is 11; expected 1 to 10. Lower x."),
        (0, {"least": 1, "most": 4096}, "x is 0; expected 1 to 4,096. Raise x."),
        (0.0, {"above": 0}, "x is 0.0; expected a number above 0. Raise x."),
        (1.0, {"least": 0, "below": 1}, "x is 1.0; expected at least 0 and below 1. Lower x."),
        (0, {"least": 1, "todo": "Write 2."}, "x is 0; expected at least 1. Write 2."),
        (math.inf, {"least": 0}, "x is inf; expected at least 0, finite. Change x."),
        (math.nan, {"least": 0}, "x is nan; expected at least 0, finite. Change x."),
        (-(10**400), {"least": 0}, "Raise x."),
        ("5", {"least": 0}, "x is '5'; expected a number. Change x."),
        (None, {"least": 0}, "x is None; expected a number. Change x."),
        (1.5, {"least": 0, "whole": True}, "x is 1.5; expected a whole number. Change x."),
    ],
)
def test_what_is_said_of_a_number(value: Any, bounds: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as info:
        check_range("x", value, **bounds)
    assert str(info.value).endswith(text)
    assert isinstance(info.value, InputTypeError) is (value in ("5", None, 1.5))


@pytest.mark.parametrize("value", [0, 10**400, np.int64(3), np.float32(0.5), True])
def test_numbers_of_all_kinds(value: Any) -> None:
    check_range("x", value, 0)
