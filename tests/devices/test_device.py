"""Devices: this machine and others, and the whole road on a device that is not this machine."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.bench.records import Effort, Plan, Record
from edgekd.devices import host
from edgekd.devices.device import Site
from edgekd.devices.local import Local, connect, fitting_target
from edgekd.errors import ConfigError, UnavailableError
from edgekd.machine import Machine
from edgekd.pipeline import distill_all
from edgekd.planning import Request
from edgekd.result import Result
from edgekd.run import open_run
from edgekd.target import Hardware, load_target
from edgekd.tasks.known import load_card

Place = Callable[..., Site]

QUICK = Effort(processes=2, warmup_s=0.05, min_calls=50, max_calls=100, max_s=0.05)
FOREIGN = "cpu-arm" if Local().facts().architecture == "x86_64" else "cpu-x86"
"""A target that this machine is not."""


# --- how a device is reached ---


@pytest.mark.parametrize("where", ["", "local"])
def test_without_a_name_it_is_this_machine(where: str) -> None:
    target = load_target("cpu-x86")
    site = connect(target, where)
    assert site == Site(target, Local())
    assert site.device.facts() == host.machine()
    site.close()


def test_an_unknown_device_is_told_with_what_is_known() -> None:
    with pytest.raises(ConfigError) as caught:
        connect(load_target("cpu-x86"), "locl")
    known = "local, qemu://cortex-a72, qemu://cortex-a76, ray://NAME, ssh://[user@]host[:port]"
    assert str(caught.value) == f"device 'locl': did you mean 'local'? Known: {known}."


def test_the_option_goes_before_the_file_and_the_file_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("cpu-x86")
    monkeypatch.setenv("EDGEKD_DEVICE", "from://environment")
    with pytest.raises(ConfigError, match="from://environment"):
        connect(target)
    named = dataclasses.replace(target, device="from://file")
    with pytest.raises(ConfigError, match="from://file"):
        connect(named)
    assert connect(named, "local").target == named


def test_accuracy_is_computed_on_the_device_or_on_the_host() -> None:
    with pytest.raises(ConfigError, match=r"^--accuracy-on 'hos': did you mean 'host'\? Known: device, host\.$"):
        connect(load_target("cpu-x86"), accuracy_on="hos")


def test_answers_that_this_machine_computes_for_a_device_are_a_proxy(place: Place) -> None:
    architecture: Any = Local().facts().architecture
    here = dataclasses.replace(load_target("cpu-x86"), hardware=Hardware(architecture=architecture))
    site = place(dataclasses.replace(here, device="ssh://board", accuracy_on="host"))
    assert (site.differences, site.measurable, site.provenance) == ([], True, "measured")
    answering = site.answering
    assert isinstance(answering.device, Local)
    assert (answering.provenance, answering.proxies) == ("proxy", ["computed on this machine, not on ssh://board"])
    assert answering.measurable  # so that int8 computes as on the device
    assert place(load_target("cpu-arm")).answering.provenance == "measured"


def test_an_emulated_device_tells_no_time_and_its_figures_say_how_they_were_obtained(place: Place) -> None:
    a72 = Machine("aarch64", "", frozenset({"asimd"}), "0xd08", emulator="qemu-aarch64 (cortex-a72)")
    site = place(load_target("cpu-arm"), a72)
    assert (site.differences, site.measurable, site.provenance) == ([], False, "emulated")
    assert site.elsewhere == "qemu-aarch64 (cortex-a72) tells no time"
    assert place(load_target("cpu-arm-dotprod"), a72).provenance == "proxy"
    assert place(load_target("cpu-arm")).provenance == "measured"


# --- a target on a device ---


def test_a_site_tells_how_its_device_differs_from_the_target(place: Place) -> None:
    pi5 = Machine("aarch64", "", frozenset({"asimd", "asimddp"}), "0xd0b")
    site = place(load_target("cpu-arm"), pi5)
    assert site.differences == [
        "this CPU has asimddp, the target's has not",
        "this CPU's part is 0xd0b, the target's 0xd08",
    ]
    assert site.elsewhere == "; ".join(site.differences)
    assert not site.measurable
    same = place(load_target("cpu-arm"))
    assert (same.differences, same.elsewhere, same.measurable) == ([], "", True)


def test_a_site_tells_of_the_arithmetic_of_its_device(place: Place) -> None:
    assert "can saturate" in place(load_target("cpu-x86")).remarks[0]  # a CPU of which only AVX2 is known
    vnni = Machine("x86_64", "a PC", frozenset({"avx2", "avx512_vnni"}), "")
    assert place(load_target("cpu-x86"), vnni).remarks == ()


def test_closing_a_site_closes_its_device(place: Place) -> None:
    site: Any = place(load_target("cpu-x86"))
    site.close()
    assert site.device.closed


# --- the whole road ---


def go(site: Site, card: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The result of the whole road on that device."""
    monkeypatch.setattr("edgekd.pipeline.EFFORT", QUICK)
    monkeypatch.setattr("edgekd.search.candidates.EFFORT", QUICK)
    monkeypatch.setattr("edgekd.search.material.EFFORT", QUICK)
    loaded = load_card(str(card))
    budget = loaded.budget(site.target.name)
    with open_run(folder, loaded, site.target, budget, {}, False) as run:
        (result,) = distill_all(Request(card=loaded), [(site, run)])
    assert isinstance(result, Result)
    return result


def provenances(folder: Path) -> set[str]:
    """How the figures of the candidates and of the models were obtained."""
    candidates = json.loads((folder / "candidates.json").read_text())["candidates"]
    models = json.loads((folder / "result.json").read_text())["models"]
    early = {
        figure["provenance"]
        for candidate in candidates
        for figures in candidate["precisions"].values()
        for figure in figures.values()
    }
    return early | {how for model in models for how in model["provenance"].values()}


@pytest.mark.slow
def test_on_a_device_of_another_architecture_time_is_measured(
    place: Place, tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device says that it is a Raspberry Pi 4; its workers run on this machine."""
    plans: list[Plan] = []

    def answer(plan: Plan, *rest: Any) -> Record:
        plans.append(plan)
        return Local().run(plan, *rest)

    result = go(place(load_target("cpu-arm"), answer=answer), tiny_card, tmp_path / "run", monkeypatch)
    assert [model.latency_p50_ms.provenance for model in result.models] == ["measured"] * 3
    assert [model.score.provenance for model in result.models] == ["measured"] * 3
    assert not {"proxy", "estimated"} & provenances(tmp_path / "run")
    assert "is the first precision of target" not in result.why_chosen  # it was chosen by time
    assert {plan.mode for plan in plans} == {"latency", "memory", "profile", "predict", "pair"}
    assert not any(plan.precise_int8 for plan in plans)


@pytest.mark.slow
def test_on_this_machine_another_target_stays_a_proxy(
    tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = go(connect(load_target(FOREIGN)), tiny_card, tmp_path / "run", monkeypatch)
    assert [model.latency_p50_ms.provenance for model in result.models] == ["unknown"] * 3
    assert [model.score.provenance for model in result.models] == ["proxy"] * 3
    assert "measured" not in provenances(tmp_path / "run")
    assert "is the first precision of target" in result.why_chosen


@pytest.mark.parametrize(
    ("machine", "target"),
    [
        (Machine("x86_64", "a PC", frozenset({"avx2"}), ""), "cpu-x86-avx2"),
        (Machine("x86_64", "a server", frozenset({"avx2", "avx512_vnni"}), ""), "cpu-x86"),
        (Machine("aarch64", "", frozenset({"asimd"}), "0xd08"), "cpu-arm"),
    ],
)
def test_without_a_target_it_is_the_one_of_this_machine(machine: Machine, target: str) -> None:
    assert fitting_target(machine) == target


def test_a_machine_that_no_bundled_target_describes() -> None:
    with pytest.raises(UnavailableError, match="no bundled target describes this machine; name one with --target: "):
        fitting_target(Machine("riscv64", "", frozenset(), ""))
