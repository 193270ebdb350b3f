"""What the scores of a task are: plain data, which result files carry so that every output can show and judge them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgekd import units

__all__ = ["ACCURACY", "CLASSIFICATION", "ScoreKind"]


@dataclass(frozen=True, kw_only=True)
class ScoreKind:
    """The description of one score of a task. The first score of a task decides, and gives budgets their keys."""

    name: str
    """Its name in files and in keys: `accuracy`."""
    words: str
    """Its name for people: `top-1 accuracy`."""
    better: Literal["lower", "higher"] = "higher"
    unit: str = "share"
    """`share` for 0–1, which is shown in percent; else the unit that follows the number, or empty."""
    asked: str = ""
    """The words for its limit, if they differ from `words`: `accuracy`."""
    short: str = ""
    """The words in the head of a narrow table, if they differ from `words`: `top-1`."""
    counted: bool = False
    """Whether it is the share of the examples that are answered correctly, so that Wilson's interval applies."""
    brief: bool = True
    """Whether short tables show it, too."""
    tolerance: float = 0.5
    """How much worse than its baseline a model may be by default: percentage points for a share, else in `unit`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"name: got {self.name!r}; it should be lower-case letters, digits and underscores")

    @property
    def share(self) -> bool:
        """Whether its values are shares from 0 to 1, whose differences are percentage points."""
        return self.unit == "share"

    @property
    def limit_words(self) -> str:
        """The words for its limit: `accuracy`."""
        return self.asked or self.words

    @property
    def head(self) -> str:
        """The words in the head of a narrow table."""
        return self.short or self.words

    @property
    def limit_key(self) -> str:
        """The budget key of its limit: `min_accuracy`, `max_mae`."""
        return f"{'min' if self.better == 'higher' else 'max'}_{self.name}"

    @property
    def change_key(self) -> str:
        """The budget key that limits how much worse than the teacher a model is: `max_accuracy_drop`,
        `max_mae_rise`."""
        return f"max_{self.name}_{'drop' if self.better == 'higher' else 'rise'}"

    @property
    def teacher_key(self) -> str:
        """The budget key of the teacher's limit: `teacher_min_accuracy`, `teacher_max_mae`."""
        return f"teacher_{self.limit_key}"

    @property
    def tolerance_key(self) -> str:
        """The tolerance key that limits how much worse than its baseline a model is: `max_accuracy_loss`,
        `max_mae_increase`."""
        return f"max_{self.name}_{'loss' if self.better == 'higher' else 'increase'}"

    @property
    def budget_keys(self) -> tuple[str, str, str]:
        """The three budget keys, in the order in which verdicts show them."""
        return self.limit_key, self.change_key, self.teacher_key

    @property
    def history_key(self) -> str:
        """The key of its value on validation data in training histories: `validation_accuracy`."""
        return f"validation_{self.name}"

    def axis(self, data: str) -> str:
        """The text at the axis of a plot of its values on these data: `top-1 accuracy on test data, %`."""
        unit = ", %" if self.share else f", {self.unit}" if self.unit else ""
        return f"{self.words} on {data} data{unit}"

    @property
    def factor(self) -> float:
        """The number by which a value is multiplied for a plot, and a difference for its limit: 100 for a share."""
        return 100.0 if self.share else 1.0

    def show(self, value: float) -> str:
        """Its value as text: `91.73 %`, `43.1 mg/dl`."""
        return units.accuracy(value) if self.share else f"{value:.4g} {self.unit}".rstrip()

    def show_change(self, value: float) -> str:
        """A difference, as its limit counts it, as text: `1.20 points`, `3.5 mg/dl`."""
        return f"{value:.2f} points" if self.share else f"{value:.4g} {self.unit}".rstrip()

    def improves(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`."""
        return value > other if self.better == "higher" else value < other

    def reaches(self, value: float, limit: float) -> bool:
        """Whether `value` meets `limit`."""
        return value >= limit if self.better == "higher" else value <= limit

    @property
    def best(self) -> Callable[..., float]:
        """`max` or `min`, which picks the best of several values."""
        return max if self.better == "higher" else min

    def worsening(self, value: float, reference: float) -> float:
        """How much worse `value` is than `reference`, as limits of changes count it; negative if it is better."""
        difference = reference - value if self.better == "higher" else value - reference
        return round(self.factor * difference, 6)


CLASSIFICATION = (
    ScoreKind(name="accuracy", words="top-1 accuracy", asked="accuracy", short="top-1", counted=True),
    ScoreKind(name="top5", words="top-5 accuracy", brief=False),
    ScoreKind(name="macro_f1", words="macro F1"),
    ScoreKind(name="ece", words="calibration error", better="lower", brief=False),
)
"""The scores of classification, which cards without `task` are about. Files of earlier versions have no others."""

ACCURACY = CLASSIFICATION[0]
