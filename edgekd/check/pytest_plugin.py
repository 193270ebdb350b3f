"""A pytest plugin that tests budgets and regressions of models with the fixture `edgekd_check`.

    @pytest.mark.latency_budget(target="cpu-x86", p50_ms=2, size_kb=400)
    def test_the_student_is_fast_enough(edgekd_check):
        edgekd_check("models/student.onnx", baseline="models/main.onnx")

pytest loads this module at every start if edgekd is installed. Therefore the module imports only pytest and the
standard library at the top; functions import the modules that a check needs.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgekd.budget import Budget
    from edgekd.check.asked import CheckJob
    from edgekd.check.tolerance import Tolerance
    from edgekd.judge import Judged, Line

__all__ = ["EdgekdCheck", "edgekd_check"]

MARKER = "latency_budget"
MARKED = f"@pytest.mark.{MARKER}"
SHORT = {"p50_ms": "latency_p50_ms", "p95_ms": "latency_p95_ms", "p99_ms": "latency_p99_ms"}
PLACES = ("target", "baseline", "data")
"""Keys of the marker that are not limits."""
CHOICES = ("skip", "pass", "fail")
"""The possible outcomes of a test with an inconclusive verdict."""
PROPERTY = "edgekd"
"""The report property that holds a check's line for the terminal; pytest-xdist transfers it from its workers."""
SHOWN = 2
"""The number of limits that this line names."""
IN_PYTEST = {
    "--budget": "budget={key: value}",
    "--tolerance": "tolerance={key: value}",
    "--baseline": "baseline=FILE",
    "--data": "data=FILE",
}
"""Options of `edgekd check` that its messages mention, and their equivalents in a test."""

FilePath = str | os.PathLike[str]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command-line options; their defaults are in `_settings`."""
    group = parser.getgroup("edgekd", "edgekd: latency budgets and regressions of models")
    group.addoption(
        "--edgekd-target", metavar="NAME|FILE", help="Target of checks that name none; `edgekd targets` lists them."
    )
    group.addoption(
        "--edgekd-on-inconclusive",
        choices=CHOICES,
        help="What an inconclusive verdict does (default: the ini value edgekd_on_inconclusive, or else skip).",
    )
    group.addoption(
        "--edgekd-history", metavar="FILE", help="Append a line for each check, for `edgekd report --history`."
    )
    parser.addini("edgekd_on_inconclusive", "What an inconclusive verdict of edgekd does: skip, pass or fail.")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker. Raises pytest.UsageError for an invalid ini value."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(target=…, p50_ms=…, p95_ms=…, size_kb=…, baseline=…, max_slowdown=…, …): what the fixture "
        "edgekd_check judges by in this test, by the keys of edgekd's --budget and --tolerance.",
    )
    chosen = config.getini("edgekd_on_inconclusive")
    if chosen and chosen not in CHOICES:
        raise pytest.UsageError(f"edgekd_on_inconclusive: got {chosen!r}; it should be one of {', '.join(CHOICES)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose own marker has no effect: its author would believe that a budget is checked.

    The marker of a class or a module is only a default, because these may also contain other kinds of tests.
    """
    if "edgekd_check" in getattr(item, "fixturenames", ()):
        return
    if any(mark.name == MARKER for mark in item.own_markers):
        pytest.fail(
            f"edgekd: {MARKED} does nothing here: the test does not ask for the fixture edgekd_check; "
            "add it to the test's arguments and call it",
            pytrace=False,
        )


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """Write a line for each check; write nothing if there was none."""
    ran: dict[str, list[str]] = {}  # by test, because a repeated test also reports its earlier checks
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport) and report.when == "teardown":
            ran[report.nodeid] = [str(value) for name, value in report.user_properties if name == PROPERTY]
    lines = [line for of_test in ran.values() for line in of_test]
    if lines:
        terminalreporter.write_sep("=", "edgekd")
    for line in lines:
        terminalreporter.write_line(line)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that apply to all checks of a session."""

    target: str | None
    on_inconclusive: str
    history: Path | None
    commit: str


@pytest.fixture(scope="session")
def _edgekd_settings(pytestconfig: pytest.Config) -> Settings:
    """Read the settings before a test can change the working folder, to which command-line paths are relative."""
    start = pytestconfig.invocation_params.dir
    target, history = pytestconfig.getoption("edgekd_target"), pytestconfig.getoption("edgekd_history")
    if target and (target.endswith(".toml") or "/" in target):
        target = str(start / target)
    commit = ""
    if history:
        from edgekd.history import this_commit

        commit = this_commit()
    chosen = pytestconfig.getoption("edgekd_on_inconclusive") or pytestconfig.getini("edgekd_on_inconclusive")
    return Settings(
        target=target,
        on_inconclusive=chosen or "skip",
        history=start / history if history else None,
        commit=commit,
    )


@pytest.fixture
def edgekd_check(request: pytest.FixtureRequest, _edgekd_settings: Settings) -> "EdgekdCheck":
    """Judge a model by budgets, and against a baseline: edgekd_check(model, target, budget={"p50_ms": 2}).

    A missed limit or an error fails the test, an inconclusive verdict skips it (see --edgekd-on-inconclusive); for a
    model that passes, the judgement is returned. It may be called several times. Defaults come from the marker
    latency_budget.
    """
    with _in_one_line():
        return EdgekdCheck(request.node, _marked(request.node), _edgekd_settings, [])


@dataclass(frozen=True)
class EdgekdCheck:
    """The callable that the fixture `edgekd_check` passes to a test."""

    _item: pytest.Item
    _marked: dict[str, Any]
    _settings: Settings
    _done: "list[Judged]"

    def __call__(
        self,
        model: FilePath,
        target: FilePath | None = None,
        *,
        budget: Mapping[str, Any] | None = None,
        baseline: FilePath | None = None,
        tolerance: Mapping[str, Any] | None = None,
        data: FilePath | None = None,
    ) -> "Judged":
        """Return the judgement of a model, run folder or record that passes; otherwise fail or skip the test.

        Each argument replaces the same key of the marker; None counts as not given. `budget` and `tolerance` have the
        keys of `edgekd check --budget` and `--tolerance`; p50_ms means latency_p50_ms.
        """
        __tracebackhide__ = True
        with _in_one_line():
            places = {"target": target, "baseline": baseline, "data": data}
            given = {**places, **_limits_given(budget, tolerance)}
            job = _job(model, _without_none(self._marked | _without_none(given)), self._settings)
            judged = _run(job)
        self._done.append(judged)
        counted = self._settings.on_inconclusive
        _record(self._item, self._done, counted)
        problem = _keep(judged, self._settings)
        if judged.outcome == "inconclusive" and counted == "skip" and not problem:
            pytest.skip(_visible(f"inconclusive: {_who(judged)}: {_decisive(judged)}"))
        accepted = judged.outcome == "pass" or (judged.outcome == "inconclusive" and counted == "pass")
        if problem or not accepted:
            pytest.fail(_visible("\n".join(filter(None, [*_report_lines(judged, counted), problem]))), pytrace=False)
        return judged


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Turn errors that a user can cause into a failed test with one helpful line and no traceback."""
    from edgekd.errors import EdgekdError, one_line

    try:
        yield
    except EdgekdError as error:
        raise pytest.fail.Exception(_visible(f"edgekd: {error}"), pytrace=False) from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        where = f"{error.filename}: " if error.filename else ""
        raise pytest.fail.Exception(_visible(f"edgekd: {where}{reason}"), pytrace=False) from None


def _visible(text: str) -> str:
    from edgekd.check.wording import visible

    return visible(text)


def _marked(item: pytest.Item) -> dict[str, Any]:
    """Return the values of the markers by their long keys; closer markers win. Raises ConfigError for invalid ones."""
    from edgekd.errors import ConfigError

    budget, tolerance = _keys()
    said: dict[str, Any] = {}
    for mark in reversed(_marks(item)):
        if mark.args:
            raise ConfigError(f"{MARKED}: got {mark.args[0]!r} without a key; write it as p50_ms=2 or size_kb=400")
        said |= _written_out(mark.kwargs, [*PLACES, *budget, *tolerance], MARKED)
    _limits(_without_none(said), MARKED)  # report an invalid value before the test runs
    return said


def _marks(item: pytest.Item) -> list[pytest.Mark]:
    """Return the markers, closest first; markers of a parameter are closer than the function's, which pytest lists
    before.
    """
    own = getattr(getattr(item, "callspec", None), "marks", ())
    return sorted(item.iter_markers(MARKER), key=lambda mark: all(mark is not one for one in own))


def _keys() -> tuple[list[str], list[str]]:
    """Return the keys of --budget and of --tolerance; no key is in both."""
    from edgekd.budget import budget_keys
    from edgekd.check.tolerance import tolerance_keys
    from edgekd.tasks.known import deciding

    return budget_keys(deciding()), tolerance_keys(deciding())


def _limits_given(budget: Mapping[str, Any] | None, tolerance: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the budget and tolerance of a call by their long keys."""
    budget_keys, tolerance_keys = _keys()
    return {
        **_written_out(budget, budget_keys, "budget"),
        **_written_out(tolerance, tolerance_keys, "tolerance"),
    }


def _written_out(values: Mapping[str, Any] | None, known: Iterable[str], where: str) -> dict[str, Any]:
    """Return `values` by their long keys. Raises ConfigError for an unknown key, with the nearest known key."""
    from edgekd.errors import ConfigError, did_you_mean

    names = {name: name for name in known}
    names |= {short: name for short, name in SHORT.items() if name in names}
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f'{where}: got {values!r}; it should be a mapping, such as {{"{next(iter(names))}": 2}}')
    written: dict[str, Any] = {}
    for key, value in (values or {}).items():
        if key not in names:
            raise ConfigError(f"{where}: {key}: unknown key; {did_you_mean(str(key), names)}")
        if names[key] in written:
            raise ConfigError(f"{where}: {names[key]}: is given twice, once by its short form; leave one out")
        written[names[key]] = value
    return written


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """Remove keys whose value is None; a None in a marker thus cancels the value of an outer marker."""
    return {key: value for key, value in values.items() if value is not None}


def _limits(said: dict[str, Any], where: str) -> "tuple[Budget, Tolerance]":
    from edgekd.budget import read_budget
    from edgekd.check.tolerance import read_tolerance
    from edgekd.tasks.known import deciding

    budget, tolerance = _keys()
    return (
        read_budget({key: said[key] for key in budget if key in said}, where, deciding()),
        read_tolerance({key: said[key] for key in tolerance if key in said}, where, deciding()),
    )


def _job(model: FilePath, said: dict[str, Any], settings: Settings) -> "CheckJob":
    """Return the job to check. Raises ConfigError if something is missing or would not be judged."""
    from edgekd.check.asked import CheckJob
    from edgekd.errors import ConfigError

    path = _path(model, "model")
    budget, tolerance = _limits(said, "edgekd_check")
    target = said.get("target", settings.target)
    if target is None:
        raise ConfigError(
            f'no target for {path}; name one, as edgekd_check(model, "cpu-x86"), {MARKED}(target=…) or '
            "--edgekd-target (`edgekd targets` lists them)"
        )
    asked = [key for key in _keys()[1] if said.get(key, "off") != "off"]
    if asked and "baseline" not in said and path.suffix != ".json":  # a record may contain its baseline
        raise ConfigError(f"{asked[0]} without a baseline: {path} would be compared with nothing; give baseline=FILE")
    return CheckJob(
        path=path,
        target=str(target),
        budget=budget,
        tolerance=tolerance,
        baseline=_path(said["baseline"], "baseline") if "baseline" in said else None,
        data=_path(said["data"], "data") if "data" in said else None,
    )


def _path(value: FilePath, word: str) -> Path:
    from edgekd.errors import ConfigError

    try:
        return Path(value)
    except TypeError:
        raise ConfigError(f"{word}: got {value!r}; it should be a path") from None


def _run(job: "CheckJob") -> "Judged":
    from edgekd.check.asked import JobOptions
    from edgekd.check.jobs import run_job
    from edgekd.search.estimating import estimate

    judged, _ = run_job(job, JobOptions(), estimate, lambda text: None)
    return judged


def _record(item: pytest.Item, done: "list[Judged]", counted: str) -> None:
    """Add the terminal line and all figures of the last check to the test's properties, and thus to JUnit XML.

    The fixture record_property is not used, because it warns about the format that pytest writes by default.
    """
    from edgekd.check.wording import named_apart

    judged = named_apart(done)[-1]
    known: list[tuple[str, object]] = [(PROPERTY, _summary(judged, counted))]
    prefix = f"{PROPERTY}:{judged.name}@{judged.target}"
    known.append((f"{prefix}:outcome", judged.outcome))
    lines = judged.verdict.lines if judged.verdict else ()
    for key, figure in ({line.key: line.figure for line in lines} | judged.figures).items():
        if figure.value is not None:
            numbers = {"": figure.value, ".low": figure.low, ".high": figure.high, ".how": figure.provenance}
            known += [(f"{prefix}:{key}{end}", number) for end, number in numbers.items() if number is not None]
    item.user_properties += [(_visible(name), _visible(str(value))) for name, value in known]


def _keep(judged: "Judged", settings: Settings) -> str:
    """Append to the history and return the error text if that fails, so that the verdict is reported as well."""
    from edgekd.errors import EdgekdError
    from edgekd.history import append_history

    if settings.history is None:
        return ""
    try:
        append_history(settings.history, [judged], datetime.now(UTC), settings.commit)
    except EdgekdError as error:
        return f"edgekd: --edgekd-history: {error}"
    return ""


def _summary(judged: "Judged", counted: str) -> str:
    """Return one line: `tiny.onnx on cpu-x86: fail; file size 27.7 kB ≤ 25.0 kB: fail`."""
    taken = f" (counted as {counted})" if judged.outcome == "inconclusive" and counted != "skip" else ""
    return "; ".join(filter(None, [f"{_who(judged)}: {judged.outcome}{taken}", _decisive(judged)]))


def _who(judged: "Judged") -> str:
    return " ".join(f"{judged.name} on {judged.target}".split())


def _decisive(judged: "Judged") -> str:
    """Return the reason for a missing verdict, or the most important limits."""
    lines = sorted(judged.verdict.lines if judged.verdict else (), key=_weight)
    more = f"{len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return " ".join("; ".join(filter(None, [judged.problem, *(line.text for line in lines[:SHOWN]), more])).split())


def _weight(line: "Line") -> tuple[bool, int, bool]:
    return (
        line.advisory,
        ("fail", "inconclusive", "pass", "not judged").index(line.outcome),
        line.key != "max_slowdown",
    )


def _report_lines(judged: "Judged", counted: str) -> Iterator[str]:
    """Yield all lines that a reader of a failed test needs: each limit with figure, margin and confidence."""
    from edgekd.check.wording import background, details

    if judged.verdict is None:
        yield f"edgekd: {judged.problem}"
        here = [f"{option} is {said}" for option, said in IN_PYTEST.items() if option in judged.problem]
        if here:
            yield f"  (in pytest, {', '.join(here)})"
        return
    yield f"edgekd: {_summary(judged, counted)}"
    for line in judged.verdict.lines:
        text, *rest = details(line)
        yield f"  {text}"
        yield f"    {'; '.join(rest)}" if rest else ""
    yield from (f"  note: {note}" for note in judged.notes)
    yield from (f"  {word}: {text}" for word, text in background(judged))
