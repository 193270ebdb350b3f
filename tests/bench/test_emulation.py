"""When answers are emulated without being asked for, and what is said of them."""

import numpy as np

from edgekd.bench.emulation import compared_words, too_much_to_emulate
from edgekd.figures import Figure, ModelFigures
from edgekd.tasks.known import TASKS


def model(name: str, millions: float | None, score: float = 0.5) -> ModelFigures:
    counted = Figure(millions, "emulated") if millions else Figure()
    return ModelFigures(name, "", "", 1, "fp32", instructions_m=counted, scores={"accuracy": Figure(score, "proxy")})


def test_the_cost_decides() -> None:
    assert too_much_to_emulate([model("teacher", 3.0), model("student", 1.0)], 10_000) == ""
    told = too_much_to_emulate([model("teacher", 3.0), model("student", 1.0)], 10_001)
    assert told.startswith("answers are this machine's: the emulated core would execute 40 G instructions for them")
    assert "instructions were not counted" in too_much_to_emulate([model("teacher", None)], 1)


def test_what_differs_is_told() -> None:
    here = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    told = compared_words(
        [model("teacher", 1.0, 1.0), model("student", 1.0, 0.5)],
        [(here, here), (here, here[::-1])],
        TASKS["image-classification"],
    )
    assert told == (
        "answers are emulated; on this machine (proxy): teacher 100.00 %, the same answer on 100.00 %; "
        "student 50.00 %, the same answer on 0.00 %"
    )
