"""Several devices of one target share the candidates: nothing twice, and times as on the run's own device."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.bench.records import Plan, Record
from edgekd.card import Card
from edgekd.devices.device import Site
from edgekd.devices.local import connect_all
from edgekd.errors import ConfigError, ModelError, UnavailableError
from edgekd.figures import Figure
from edgekd.files import read_json
from edgekd.planning import Request, TargetPlan, prepare, search
from edgekd.run import open_run
from edgekd.search.sharing import Anchor, each_takes
from edgekd.target import Target, load_target
from edgekd.tasks.known import load_card

Place = Callable[..., Site]
SLOWER = 1.6
"""How many times as long a call takes on the second device."""


def ms(value: float, spread: float = 0.0) -> Figure:
    return Figure(value, "measured", value * (1 - spread), value * (1 + spread))


def test_a_time_of_another_device_is_scaled_by_the_anchor_and_says_so() -> None:
    times = {"ssh://a": {"fp32": ms(0.2, 0.01)}, "ssh://b": {"fp32": ms(0.3, 0.02)}}
    anchor = Anchor({}, times)
    found = anchor.scaled({"latency_p50_ms": ms(0.9, 0.1), "size_kb": Figure(7, "exact")}, "ssh://b", "fp32")
    time = found["latency_p50_ms"]
    assert time.value == pytest.approx(0.9 * 0.2 / 0.3)
    assert time.low == pytest.approx(0.9 * 0.9 * 0.99 * 0.2 / (1.02 * 0.3))
    assert time.high == pytest.approx(0.9 * 1.1 * 1.01 * 0.2 / (0.98 * 0.3))
    assert time.provenance == "estimated"
    assert time.why == "measured on ssh://b, where the anchor takes 1.5 times as long; scaled to ssh://a"
    assert found["size_kb"] == Figure(7, "exact")
    own = {"latency_p50_ms": ms(0.9)}
    assert anchor.scaled(own, "ssh://a", "fp32") == own
    assert anchor.told() == "the anchor in fp32 takes ssh://a 0.2 ms, ssh://b 0.3 ms (× 1.5)"


@pytest.fixture
def sites(place: Place) -> list[Site]:
    """Three devices of one target."""
    return [place(dataclasses.replace(load_target("cpu-arm"), device=f"fake://{name}")) for name in "abc"]


def test_each_item_is_done_once_and_all_sites_work(sites: list[Site]) -> None:
    done: list[tuple[str, int]] = []
    meeting = threading.Barrier(3, timeout=10)

    def work(site: Site, item: int) -> None:
        if item < 3:
            meeting.wait()  # which no site passes before all of them have an item
        done.append((site.place, item))

    each_takes(sites, range(20), work)
    assert sorted(item for _, item in done) == list(range(20))
    assert {where for where, _ in done} == {"fake://a", "fake://b", "fake://c"}


def test_a_lost_device_leaves_its_item_to_the_others(sites: list[Site], capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []
    lost = threading.Event()

    def work(site: Site, item: int) -> None:
        if site.place == "fake://b":
            lost.set()
            raise UnavailableError("device fake://b: is gone")
        assert lost.wait(10)
        done.append(item)

    each_takes(sites, range(9), work)
    assert sorted(done) == list(range(9))
    assert capsys.readouterr().err == "search: device fake://b: is gone; the other devices measure the rest\n"


@pytest.mark.parametrize("where", ["fake://a", "fake://b"])
def test_any_other_error_ends_the_work_of_all(sites: list[Site], where: str) -> None:
    done: list[int] = []

    def work(site: Site, item: int) -> None:
        time.sleep(0.01)
        if site.place == where:
            raise ModelError("crashed")
        done.append(item)

    with pytest.raises(ModelError, match=r"^crashed$"):
        each_takes(sites, range(1000), work)
    assert len(done) < 500


# --- the search with two devices ---


def device(target: Target, place: Place, name: str, factor: float) -> Site:
    """A device on which a call takes as long as the model's file is large, times a factor."""

    def answer(plan: Plan, model: Path, *rest: Any) -> Record:
        time.sleep(0.02 * factor)
        seconds = factor * model.stat().st_size * 1e-8
        values: dict[str, Any] = {"latency_s": (seconds,) * 60, "load_s": 0.01, "first_call_s": 0.01}
        return Record(mode=plan.mode, fingerprint={}, memory={"run_bytes": 10**7}, **values)

    return place(dataclasses.replace(target, device=f"fake://{name}"), answer=answer)


@pytest.fixture
def card(tiny_card: Path) -> Card:
    """The tiny card with six shapes."""
    text = tiny_card.read_text().replace("[[8, 8], [8, 16]]", "[[8, 8], [8, 12], [8, 16]]")
    tiny_card.write_text(text.replace("hidden = [16]", "hidden = [8, 16]"))
    return load_card(str(tiny_card))


def searched(card: Card, site: Site, folder: Path) -> TargetPlan:
    with open_run(folder, card, site.target, card.budget(""), {}, False) as run:
        return search(prepare(Request(card=card), [run]), site, run)


def test_two_devices_share_the_candidates_and_their_difference_is_taken_out(
    place: Place, card: Card, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = load_target("cpu-arm")
    slow = device(target, place, "slow", SLOWER)
    site = dataclasses.replace(device(target, place, "own", 1.0), more=(slow,))
    plan = searched(card, site, tmp_path / "shared")
    told = capsys.readouterr().err
    assert "search: 2 devices share 6 candidates; the anchor in int8 takes fake://own " in told
    assert "ms (× 1.6)" in told
    content = read_json(tmp_path / "shared" / "candidates.json")
    assert list(content["anchor"]["times"]) == ["fake://own", "fake://slow"]
    by = {one["timed_on"] for one in content["candidates"]}
    assert by == {"", "fake://slow"}

    alone = searched(card, device(target, place, "own", 1.0), tmp_path / "alone")
    expected = {one.name: one for one in alone.candidates}
    assert len(plan.candidates) == len(expected) == 6
    for one in plan.candidates:
        for precision, figures in one.precisions.items():
            time, true = figures["latency_p50_ms"], expected[one.name].precisions[precision]["latency_p50_ms"]
            assert time.value == pytest.approx(true.value, rel=0.02)  # names of files differ by a few bytes
            assert time.provenance == ("estimated" if one.timed_on else "measured")
    assert plan.choice.name == alone.choice.name
    assert plan.choice.measured_here
    assert slow.device.closed  # type: ignore[attr-defined]

    again = searched(card, site, tmp_path / "shared")  # nothing is measured again
    assert again.candidates == plan.candidates
    assert "devices share" not in capsys.readouterr().err


def test_devices_that_cannot_share_are_told(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    target = load_target("cpu-arm")
    with pytest.raises(ConfigError, match=r"^--device 'ssh://a': is named twice; name each device once$"):
        connect_all(target, ["ssh://a", "ssh://a"])
    with pytest.raises(ConfigError, match=r"^--device local: cannot share candidates with other devices"):
        connect_all(target, ["local", "ssh://a"])
    wrong = place(dataclasses.replace(load_target("cpu-x86"), device="ssh://b"))
    known = {"ssh://a": place(dataclasses.replace(target, device="ssh://a")), "ssh://b": wrong}
    known["ssh://b"] = Site(dataclasses.replace(target, device="ssh://b"), wrong.device)
    monkeypatch.setattr("edgekd.devices.local.connect", lambda target, where, accuracy_on, shared: known[where])
    with pytest.raises(
        ConfigError, match=r"^--device ssh://b: cannot share candidates, because it is not target cpu-arm"
    ):
        connect_all(target, ["ssh://a", "ssh://b"])
    assert all(site.device.closed for site in known.values())  # type: ignore[attr-defined]
