"""Pack all candidates of a search for a device that nothing can reach: one call of `sh run.sh` there times them."""

from pathlib import Path

from edgekd.bench.measure import measure_speed
from edgekd.console import progress
from edgekd.devices.bundle import Packing, write_bundle
from edgekd.errors import ConfigError
from edgekd.nets.families import make_shapes
from edgekd.search.candidates import MEASURED, Search, effort_of, usable
from edgekd.search.found import LeftOut

__all__ = ["pack_candidates"]


def pack_candidates(search: Search, device: Packing, path: Path) -> int:
    """Write the bundle (.tar.gz) of all candidates, untrained, in each precision of the target; return how many there
    are. `device` is the search's own.

    Candidates that cannot be used are left out and told. Raises ConfigError if the card has more than MEASURED shapes,
    or if none can be used.
    """
    card = search.card
    shapes = make_shapes(card, card.student)
    if len(shapes) > MEASURED:
        raise ConfigError(
            f"{card.file}: student.knobs: give {len(shapes):,} shapes, and a bundle holds at most {MEASURED}; give "
            "fewer values, such as --set 'student.knobs.KEY=[…]'"
        )
    left_out: list[LeftOut] = []
    with progress() as bar:
        for number, shape in enumerate(bar.track(shapes, description="packing candidates")):
            subjects = usable(search, shape, left_out, False, f"candidate-{number}")
            measure_speed(subjects, search.site, search.inputs, None, effort_of(search))
    if len(left_out) == len(shapes):
        raise ConfigError(f"{card.file}: student: none of the {len(shapes)} candidates can be used")
    write_bundle(path, device.orders, search.site.target.python)
    return len(shapes) - len(left_out)
