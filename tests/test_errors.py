"""Exit codes, the nearest names, and foreign messages on one line."""

import itertools

import pytest

from edgekd import errors
from edgekd.errors import (
    BudgetError,
    ConfigError,
    EdgekdError,
    ExitCode,
    InputError,
    ModelError,
    UnavailableError,
    did_you_mean,
    one_line,
    worst,
)


def test_exit_codes_are_the_documented_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "PASS": 0,
        "FAIL": 1,
        "USAGE": 2,
        "INCONCLUSIVE": 3,
        "INTERNAL": 70,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("kind", "code"), [(ConfigError, 2), (InputError, 2), (UnavailableError, 2), (BudgetError, 1), (ModelError, 1)]
)
def test_every_kind_has_its_exit_code(kind: type[EdgekdError], code: int) -> None:
    assert issubclass(kind, EdgekdError)
    assert kind("text").exit_code == code
    assert str(kind("text")) == "text"


def test_every_kind_is_in_the_list_above() -> None:
    own = {kind.__name__ for kind in EdgekdError.__subclasses__() if kind.__module__ == "edgekd.errors"}
    assert own == {
        "ConfigError",
        "InputError",
        "UnavailableError",
        "BudgetError",
        "ModelError",
    }
    assert set(errors.__all__) >= own


def test_the_worst_of_several_results() -> None:
    order = [130, 70, 2, 1, 3, 0]
    for length in (1, 2, 3):
        for codes in itertools.product(order[1:], repeat=length):
            assert worst(codes) == min(codes, key=order.index), codes
    assert worst([]) == 0
    assert worst([0, 130, 2]) == 130
    assert worst(iter([ExitCode.INCONCLUSIVE, ExitCode.FAIL])) == 1


def test_the_nearest_names() -> None:
    assert did_you_mean("cpu-x68", ["cuda", "cpu-x86", "wasm"]) == "did you mean 'cpu-x86'? Known: cpu-x86, cuda, wasm."
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b."
    assert did_you_mean("ab", ["abd", "abc"]) == "did you mean 'abd' or 'abc'? Known: abc, abd."
    assert did_you_mean("a", []) == "Known: none."


def test_a_foreign_message_becomes_one_line() -> None:
    assert one_line(ValueError("first\n  second\tthird")) == "first second third"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 300)) == "x" * 300
    assert one_line(ValueError("x" * 301)) == "x" * 299 + "…"
    assert one_line(ValueError("abcdef"), limit=4) == "abc…"
