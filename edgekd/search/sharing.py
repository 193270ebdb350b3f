"""Share the timing of candidates among several devices of one target, and take out how much the devices differ.

Two boards of the same kind do not run at the same speed: their cooling, their power supply and their chips differ. Each
device therefore times the same network, the anchor. A time t that another device measured becomes

    t · (time of the anchor on the run's own device) / (time of the anchor on the other device)

It is an estimate, because no other model need slow down as the anchor does.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from edgekd.candidate import Shape
from edgekd.console import say
from edgekd.devices.device import Site
from edgekd.errors import UnavailableError
from edgekd.figures import Figure

__all__ = ["Anchor", "each_takes"]

T = TypeVar("T")
LATENCY = "latency_p50_ms"
"""The only figure of a candidate that differs between devices of one target."""


@dataclass(frozen=True)
class Anchor:
    """The untrained network that every device timed."""

    shape: Shape
    times: dict[str, dict[str, Figure]]
    """The median time of a call in ms, by the device's place and then by precision; the run's own device is first."""

    @property
    def own(self) -> str:
        """The place of the run's own device."""
        return next(iter(self.times))

    def ratio(self, place: str, precision: str) -> Figure:
        """How many times as long the anchor takes on the device at `place` as on the run's own device."""
        other, own = self.times[place][precision], self.times[self.own][precision]
        assert other.value and own.value and other.low and other.high and own.low and own.high
        return Figure(other.value / own.value, "estimated", other.low / own.high, other.high / own.low)

    def scaled(self, figures: dict[str, Figure], place: str, precision: str) -> dict[str, Figure]:
        """The figures of a candidate in one precision that the device at `place` measured, as they are expected on the
        run's own device. The interval holds the spread of the candidate's time and of both times of the anchor."""
        time = figures.get(LATENCY)
        if place == self.own or time is None or time.value is None:
            return figures
        ratio = self.ratio(place, precision)
        assert ratio.value and ratio.low and ratio.high
        low, high = (time.low or time.value) / ratio.high, (time.high or time.value) / ratio.low
        why = f"measured on {place}, where the anchor takes {ratio.value:.3g} times as long; scaled to {self.own}"
        return {**figures, LATENCY: Figure(time.value / ratio.value, "estimated", low, high, why)}

    def told(self) -> str:
        """One line for the user: the anchor's time on each device."""
        precision = next(iter(self.times[self.own]))
        shown = []
        for place, times in self.times.items():
            ratio = "" if place == self.own else f" (× {self.ratio(place, precision).value:.3g})"
            shown.append(f"{place} {times[precision].value:.3g} ms{ratio}")
        return f"the anchor in {precision} takes " + ", ".join(shown)


class _Queue:
    """Items that several threads take, until it is empty or one of them has failed."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._left, self._lock = deque(items), threading.Lock()
        self.failed: BaseException | None = None

    def take(self) -> Any:
        with self._lock:
            return self._left.popleft() if self._left and self.failed is None else None

    def give_back(self, item: Any) -> None:
        with self._lock:
            self._left.appendleft(item)


def each_takes(sites: Sequence[Site], items: Sequence[T], work: Callable[[Site, T], None]) -> None:
    """Call `work(site, item)` once for each item. All sites work at the same time, and each takes the next item when it
    is free; no item is None.

    A further site whose device is lost leaves its item to the others. Raises the first other error, and any error of
    the first site, which works in this thread; the further sites are closed then.
    """
    queue = _Queue(items)
    own, *further = sites
    with ThreadPoolExecutor(max_workers=max(1, len(further))) as pool:
        started = [pool.submit(_serve, site, queue, work) for site in further]
        try:
            _serve_own(own, queue, work)
            for one in started:
                one.result()
            _serve_own(own, queue, work)  # what a lost device gave back in the meantime
        except BaseException as error:
            queue.failed = queue.failed or error
            for site in further:  # which ends what is measured there
                site.close()
            raise
    if queue.failed is not None:
        raise queue.failed


def _serve_own(site: Site, queue: _Queue, work: Callable[[Site, Any], None]) -> None:
    while (item := queue.take()) is not None:
        work(site, item)


def _serve(site: Site, queue: _Queue, work: Callable[[Site, Any], None]) -> None:
    while (item := queue.take()) is not None:
        try:
            work(site, item)
        except UnavailableError as error:
            if queue.failed is None:
                queue.give_back(item)
                say(f"search: {error}; the other devices measure the rest")
            return
        except BaseException as error:
            queue.failed = queue.failed or error
            return
