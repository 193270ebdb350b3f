"""Format a check as JUnit XML, which every CI system shows."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from edgekd.check.wording import background, details, kind, named_apart, visible
from edgekd.judge import Judged, Line

__all__ = ["junit_xml"]


def junit_xml(judged: Sequence[Judged], on_inconclusive: str | None) -> str:
    """Return one test suite per target, with one case for each metric of each model.

    An inconclusive case is skipped; with `on_inconclusive` "fail" it fails, with "pass" it passes and its text says so.
    """
    judged = named_apart(judged)
    targets = list(dict.fromkeys(one.target for one in judged))
    root = ET.Element("testsuites", name="edgekd check")
    for target in targets:
        mine = [one for one in judged if one.target == target]
        root.append(_suite(target, mine, on_inconclusive, several=len(targets) > 1))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.attrib[key]) for suite in root)))
    root.set("time", f"{sum(one.seconds for one in judged):.3f}")
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(target: str, judged: Sequence[Judged], on_inconclusive: str | None, several: bool) -> ET.Element:
    suite = ET.Element("testsuite", name=visible(target))
    machines = dict.fromkeys(one.machine for one in judged if one.machine)
    _properties(suite, [("target", target), *(("machine", machine) for machine in machines)])
    for one in judged:
        # GitLab identifies a case only by class and name, and shows only one of two equal cases.
        model = f"{one.name} on {one.target}" if several else one.name
        suite.extend(_cases(one, visible(model), on_inconclusive))
    suite.set("tests", str(len(suite.findall("testcase"))))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("time", f"{sum(one.seconds for one in judged):.3f}")
    return suite


def _cases(one: Judged, model: str, on_inconclusive: str | None) -> list[ET.Element]:
    lines = one.verdict.lines if one.verdict else ()
    seconds = (
        f"{one.seconds / max(1, len(lines)):.3f}"  # all lines come from one measurement, so its time is divided equally
    )
    if not lines:
        case = _case(one, model, "check", seconds)
        if one.verdict is None:
            _add(case, "error", one.problem, "error", [one.problem])
        else:
            ET.SubElement(case, "skipped", message="nothing was to be judged")
        _output(case, one.notes)
        return [case]
    cases = []
    for line in lines:
        case = _case(one, model, line.words, seconds)
        _result(case, line, on_inconclusive)
        _output(case, [*details(line), *one.notes])
        cases.append(case)
    return cases


def _case(one: Judged, model: str, name: str, seconds: str) -> ET.Element:
    case = ET.Element("testcase", classname=model, name=name, time=seconds)
    _properties(case, background(one))
    return case


def _result(case: ET.Element, line: Line, on_inconclusive: str | None) -> None:
    """Mark a case as failed or skipped; an advisory line is neither."""
    if line.outcome == "not judged":
        ET.SubElement(case, "skipped", message=visible(line.text))
    elif line.advisory or line.outcome == "pass":
        return
    elif line.outcome == "fail":
        _add(case, "failure", line.text, kind(line), details(line))
    elif on_inconclusive == "fail":
        _add(case, "failure", line.text, "inconclusive", details(line))
    elif on_inconclusive != "pass":
        ET.SubElement(case, "skipped", message=visible(line.text))


def _add(case: ET.Element, tag: str, message: str, type_: str, text: Sequence[str]) -> None:
    ET.SubElement(case, tag, message=visible(message), type=type_).text = visible("\n".join(text))


def _output(case: ET.Element, lines: Sequence[str]) -> None:
    if lines:
        ET.SubElement(case, "system-out").text = visible("\n".join(lines))


def _properties(parent: ET.Element, known: Sequence[tuple[str, str]]) -> None:
    if known:
        properties = ET.SubElement(parent, "properties")
        for name, value in known:
            ET.SubElement(properties, "property", name=name, value=visible(value))
