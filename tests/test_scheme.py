import json
import math

import pytest

from bsq_lightning.scheme import LayerScheme, Scheme

SCHEME = Scheme((LayerScheme("conv", 100, 3, 0.1), LayerScheme("fc", 60, 0, 0.0)), float_parameters=40, act_precision=4)


def test_json_travels() -> None:
    assert Scheme.from_json(SCHEME.to_json()) == SCHEME


def test_three_sizes_by_hand() -> None:
    assert [SCHEME.bits(counting) for counting in ("paper", "signed", "model")] == [300, 400, 400 + 32 * (40 + 2)]
    assert SCHEME.compression("paper") == 32 * 160 / 300
    assert SCHEME.compression("model") == 32 * 200 / (400 + 32 * 42)
    assert SCHEME.mean_precision == 300 / 160


def test_nothing_left_is_infinite_in_python_and_null_in_json() -> None:
    empty = Scheme((LayerScheme("conv", 10, 0, 0.0),))
    assert empty.compression("paper") == math.inf
    assert json.loads(json.dumps(empty.sizes()))["paper"] == {"bits": 0, "compression": None}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"layers": 3}', '{"layers": [], "float_parameters": 0, "act_precision": 0}', "\x00\xff",
     SCHEME.to_json()[:-20], SCHEME.to_json().replace('"precision": 3', '"precision": 99')],
)  # fmt: skip
def test_what_is_no_scheme_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="some/file"):
        Scheme.from_json(text, "some/file")
