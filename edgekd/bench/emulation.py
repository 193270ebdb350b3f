"""What an emulated core answers, beside what this machine answers in its place."""

from collections.abc import Sequence

from edgekd.figures import ModelFigures
from edgekd.tasks.task import Outputs, Task
from edgekd.units import accuracy

__all__ = ["compared_words", "too_much_to_emulate"]

MOST_M = 40_000
"""Millions of instructions that are emulated for answers without being asked: about two minutes of a fast core."""


def too_much_to_emulate(models: Sequence[ModelFigures], examples: int) -> str:
    """Say why the answers of all models to so many examples are not computed on an emulated core; the text is empty if
    they can be.

    The cost is known from the counted instructions, so that equal runs decide alike however busy the machine is.
    """
    counted = [model.instructions_m.value for model in models]
    if None in counted:
        return "the emulated core's answers were not computed, because instructions were not counted"
    needed = examples * sum(counted)  # type: ignore[arg-type]
    if needed <= MOST_M:
        return ""
    return (
        f"answers are this machine's: the emulated core would execute {needed / 1e3:,.0f} G instructions for them, and "
        f"edgekd executes at most {MOST_M / 1e3:.0f} G unless --device qemu://… is named"
    )


def compared_words(models: Sequence[ModelFigures], pairs: Sequence[Sequence[Outputs]], task: Task) -> str:
    """Say how the models score on this machine, and for how many examples the emulated core gives the same answer.

    `models` have the scores of this machine. `pairs` holds the outputs here and there for each model.
    """
    told = []
    for model, (here, there) in zip(models, pairs, strict=True):
        text = f"{model.name} {model.kinds[0].show(model.score.value or 0.0)}"
        told.append(f"{text}, the same answer on {accuracy(task.same(here, there))}" if task.same else text)
    return f"answers are emulated; on this machine (proxy): {'; '.join(told)}"
