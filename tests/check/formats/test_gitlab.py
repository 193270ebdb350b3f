"""GitLab's metrics report, read as OpenMetrics and as GitLab reads it."""

import dataclasses
import re
import shlex

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edgekd.check.formats.gitlab import gitlab_metrics
from edgekd.figures import BUDGETED, COMPARED, Figure
from edgekd.judge import Judged, Verdict


def samples(text: str) -> dict[tuple[str, str, str, str], float]:
    return {
        (sample.name, sample.labels["model"], sample.labels["target"], sample.labels["metric"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def as_gitlab_reads(text: str) -> dict[str, str]:
    """Comments cut off, split as a shell does, the first two words."""
    lines = [shlex.split(re.sub(r"#.*$", "", line)) for line in text.splitlines()]
    return {line[0]: line[1] for line in lines if line}


def test_every_known_figure_and_its_labels(mixed: Judged, slower: Judged) -> None:
    text = gitlab_metrics([mixed, slower])
    assert text.endswith("# EOF\n")
    model, target = "student.onnx", "cpu-x86"
    assert samples(text) == {
        ("edgekd_latency_p50_ms", model, target, "latency p50"): 0.652,
        ("edgekd_latency_p95_ms", model, target, "latency p95"): 0.7,
        ("edgekd_latency_p99_ms", model, target, "latency p99"): 0.9,
        ("edgekd_load_ms", model, target, "load time"): 9.6,
        ("edgekd_size_kb", model, target, "file size"): 27.7,
        ("edgekd_slowdown", "big.onnx", target, "p50 slowdown"): 0.051,
    }
    assert as_gitlab_reads(text)["edgekd_size_kb{model=student.onnx,target=cpu-x86,metric=file size}"] == "27.7"


def test_what_is_unknown_or_no_number_is_left_out() -> None:
    figures = {"latency_p50_ms": Figure(float("nan"), "measured"), "size_kb": Figure(float("inf")), "load_ms": Figure()}
    assert gitlab_metrics([Judged(name="m", target="t", verdict=Verdict(()), figures=figures)]) == "# EOF\n"
    assert gitlab_metrics([]) == "# EOF\n"


def test_a_name_breaks_neither_reader(broken: Judged) -> None:
    figures = {"size_kb": Figure(1.5, "exact")}
    text = gitlab_metrics([Judged(name=broken.name, target="t", verdict=Verdict(()), figures=figures)])
    (key,) = samples(text)
    escapes = {"\x00": r"\x00", "\x1b": r"\x1b", "\udc80": r"\udc80", "#": "%23"}
    assert key[1] == "".join(escapes.get(character, character) for character in broken.name)
    assert list(as_gitlab_reads(text).values()) == ["1.5"]


def test_models_of_one_name_keep_their_figures_apart(passed: Judged) -> None:
    keys = samples(gitlab_metrics([passed, dataclasses.replace(passed, file="b/small.onnx"), passed]))
    assert [model for _, model, *_ in keys] == ["small.onnx", "b/small.onnx", "small.onnx (2)"]


def test_every_metric_has_a_name_of_its_own() -> None:
    keys = [*BUDGETED, *COMPARED]
    figures = {key: Figure(1.0, "measured") for key in keys}
    found = samples(gitlab_metrics([Judged(name="m", target="t", verdict=Verdict(()), figures=figures)]))
    assert len({name for name, *_ in found}) == len(keys)
