"""Format a check as GitLab's metrics report: OpenMetrics text, which the merge request compares with the target
branch.
"""

import math
from collections.abc import Sequence

from edgekd.check.wording import named_apart, visible
from edgekd.figures import Figure, Metric, budgeted, compared
from edgekd.judge import Judged

__all__ = ["gitlab_metrics"]


def gitlab_metrics(judged: Sequence[Judged]) -> str:
    """Return every known figure, judged or not, with one OpenMetrics family per metric."""
    known: dict[str, Metric] = {}
    for one in judged:
        known |= {**budgeted(one.kind), **compared(one.kind)}
    families: dict[str, dict[str, str]] = {key: {} for key in known}
    for one in named_apart(judged):
        for key, figure in _figures(one).items():
            if key in known and figure.value is not None and math.isfinite(figure.value):
                labels = _labels(model=one.name, target=one.target, metric=known[key].limit_words)
                families[key][labels] = f"{figure.value:.6g}"
    lines = []
    for key, samples in families.items():
        if samples:
            name = _name(key)
            lines += [f"# TYPE {name} gauge", f"# HELP {name} {known[key].limit_words}"]
            lines += [f"{name}{labels} {value}" for labels, value in samples.items()]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _figures(one: Judged) -> dict[str, Figure]:
    """Return the figures of the model, and those that exist only in a comparison with its baseline."""
    regressions = {line.key: line.figure for line in one.verdict.lines} if one.verdict else {}
    return regressions | one.figures


def _name(key: str) -> str:
    """Return the metric's name without its limit: `min_accuracy` → `edgekd_accuracy`."""
    return f"edgekd_{key.replace('min_', '').replace('max_', '')}"


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    """Escape text for OpenMetrics, and `#` as %23, because GitLab drops the rest of a line after it, even inside
    quotes.
    """
    escaped = visible(value.replace("\r", "")).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return escaped.replace("#", "%23")
