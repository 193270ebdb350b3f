"""Predicting the figures of shapes that were not measured: prices found again, honest errors, what is counted."""

import dataclasses

import numpy as np
import pytest

from edgekd.candidate import Candidate, Shape
from edgekd.card import Student
from edgekd.figures import Figure
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.search.features import Counts, count
from edgekd.search.latency import errors_left_out, fit
from edgekd.search.predict import predict, spread_out
from edgekd.tasks.known import load_card

CARD = load_card("cifar10")
PRICES = {"one": 0.02, "dense macs": 2e-8, "pool moved": 1e-6}


def sums(number: int) -> Counts:
    drawn = np.random.default_rng(number).uniform(1, 10, 3)
    dense, pool = 1e6 * drawn[0], 1e4 * drawn[1]
    return {"one": 1.0, "dense macs": dense, "pool moved": pool, "macs": dense, "params": 1e4 * drawn[2]}


def price(one: Counts) -> float:
    return sum(PRICES[name] * one[name] for name in PRICES)


def test_prices_are_found_again() -> None:
    known, other = [sums(number) for number in range(30)], [sums(number) for number in range(100, 120)]
    model = fit(known, [price(one) for one in known])
    assert {name: value for name, value in model.prices.items() if value > 1e-12} == pytest.approx(PRICES, rel=1e-3)
    np.testing.assert_allclose(model.predict(other), [price(one) for one in other], rtol=1e-3)
    assert np.abs(errors_left_out(known, [price(one) for one in known])).max() < 1e-3


def test_what_the_prices_cannot_say_is_learnt_from_resembling_shapes() -> None:
    known = [sums(number) for number in range(60)]
    crooked = [price(one) * (1 + 0.4 * np.tanh(np.log(one["params"] / 4e4))) for one in known]
    errors = np.abs(errors_left_out(known, crooked))
    assert float(np.median(errors)) < 0.03


def test_an_error_is_that_of_a_shape_the_model_does_not_know() -> None:
    known = [sums(number) for number in range(20)]
    figures = [price(one) for one in known]
    figures[7] *= 2
    errors = errors_left_out(known, figures)
    assert errors[7] == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("cifar-resnet", {"depth": 8, "width": 8}),
        ("repvgg", {"width": 8, "layers": 2}),
        ("separable", {"width": 8, "resolution": 16}),
        ("mlp", {"hidden": [16]}),
        ("mobilenet-v2", {"width": 0.25}),
    ],
)
def test_counted_without_values_as_with_them(family: str, shape: Shape) -> None:
    card = dataclasses.replace(CARD, student=Student(family=family))
    net = folded(make(card, card.student, shape, "student.knobs").eval(), card.data)
    counts = count(card, shape)
    assert (counts["macs"], counts["params"]) == (count_macs(net, card.data), count_params(net))


def test_layers_are_counted_by_kind() -> None:
    card = dataclasses.replace(CARD, student=Student(family="separable"))
    counts = count(card, {"widths": [8, 16]})
    assert {name: int(value) for name, value in counts.items() if name.endswith("layers")} == {
        "permute layers": 1,
        "to_copy layers": 1,
        "add layers": 2,  # the preprocessing's multiplication and addition
        "dense layers": 1,
        "depthwise layers": 2,
        "pointwise layers": 2,
        "mean layers": 1,
        "gemm layers": 1,
    }
    assert counts["depthwise macs"] == 1024 * 72 + 256 * 72
    assert counts["dense by 16"] == 1024 * 16 * 28  # 8 channels take the place of 16, 27 products that of 28


def measured(number: int, ms: float | None) -> Candidate:
    figure = Figure(ms, "measured" if ms else "unknown", why="" if ms else "this machine is another one")
    return Candidate({"n": number}, 1, 1, {"int8": {"latency_p50_ms": figure}})


def test_a_prediction_is_an_estimate_with_an_interval_and_its_quality() -> None:
    known = [sums(number) for number in range(20)]
    candidates = [measured(number, price(one)) for number, one in enumerate(known)]
    ((found,), (quality,)) = predict(candidates, known, [{"n": 99}], [sums(99)])
    figure = found.precisions["int8"]["latency_p50_ms"]
    assert found.predicted
    assert (figure.provenance, figure.why) == ("estimated", "predicted from 20 measured shapes")
    assert figure.value == pytest.approx(price(sums(99)), rel=1e-3)
    assert figure.low is not None and figure.high is not None and figure.value is not None
    assert figure.low <= figure.value <= figure.high
    assert (quality.shapes, quality.within_10_percent) == (20, 1.0)


def test_what_was_not_measured_stays_unknown() -> None:
    known = [sums(number) for number in range(20)]
    ((found,), fitted) = predict([measured(n, None) for n in range(20)], known, [{"n": 99}], [sums(99)])
    assert found.precisions["int8"]["latency_p50_ms"] == Figure(why="this machine is another one")
    assert fitted == []


def test_every_family_is_measured_from_its_smallest_to_its_largest() -> None:
    shapes: list[Shape] = [{"family": "vgg", "n": n} for n in range(90)] + [
        {"family": "mlp", "n": n} for n in range(10)
    ]
    counts = [{"macs": float(shape["n"]), "params": 1.0} for shape in shapes]
    chosen = [shapes[place] for place in spread_out(shapes, counts, 20)]
    vgg = [shape["n"] for shape in chosen if shape["family"] == "vgg"]
    assert (len(vgg), vgg[0], vgg[-1]) == (18, 0, 89)
    assert [shape["n"] for shape in chosen if shape["family"] == "mlp"] == [0, 9]
