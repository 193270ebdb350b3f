"""What timing candidates by ssh costs over timing them here: an sshd on loopback, the same files by turns.

    edgekd search digits --target cpu-x86 --bundle c.tar.gz … && tar xzf c.tar.gz
    python tests/benchmarks/by_ssh.py OUT.json c/orders.json

The candidates of a bundle are timed with the effort of a search, each one here and by ssh, and which comes first
changes. The first session sends every file; the second one is asked to send them again.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "devices"))
from conftest import serving  # type: ignore[import-not-found]

from edgekd import __version__
from edgekd.bench.measure import Subject, measure_speed
from edgekd.devices.device import Site
from edgekd.devices.host import machine
from edgekd.devices.link import AGENT
from edgekd.devices.local import Local
from edgekd.devices.ssh import Ssh
from edgekd.files import read_json, write_json
from edgekd.search.candidates import EFFORT
from edgekd.target import load_target


class Folders:
    """Makes temporary folders, as pytest's factory does."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def mktemp(self, name: str) -> Path:
        """Make a new folder."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.top))


def candidates_in(orders: Path, folder: Path) -> tuple[list[list[Path]], Path]:
    """The model files of each candidate, under their own names, and the inputs."""
    found: dict[str, list[Path]] = {}
    inputs = orders
    for order in read_json(orders)["orders"]:
        for name, digest in order["links"].items():
            stored = orders.parent / "files" / digest
            if not name.startswith("model/"):
                inputs = folder / name
                inputs.unlink(missing_ok=True)
                inputs.symlink_to(stored.resolve())
                continue
            file = folder / Path(name).name
            if not file.exists():
                file.symlink_to(stored.resolve())
                found.setdefault("-".join(file.stem.split("-")[:2]), []).append(file)
    return list(found.values()), inputs


def seconds(files: list[Path], site: Site, inputs: Path) -> float:
    """Seconds of timing one candidate."""
    subjects = [Subject(name=file.stem, file=file, precision="as it is") for file in files]
    started = time.monotonic()
    measure_speed(subjects, site, inputs, None, EFFORT)
    return time.monotonic() - started


def compared(orders: Path, top: Path) -> dict[str, Any]:
    """Time all candidates here and by ssh, by turns."""
    candidates, inputs = candidates_in(orders, top)
    target = load_target("cpu-x86")
    here: list[float] = []
    there: list[float] = []
    with serving(Folders(top), "board") as board:
        os.environ["EDGEKD_SSH_CONFIG"] = str(board.folder / "ssh_config")
        device = Ssh("ssh://board", sys.executable)
        connecting = time.monotonic()
        device.require(target)
        connecting = time.monotonic() - connecting
        local, far = Site(target, Local()), Site(target, device)
        for number, files in enumerate(candidates):
            for site, taken in ((local, here), (far, there)) if number % 2 else ((far, there), (local, here)):
                taken.append(seconds(files, site, inputs))
            print(f"{number + 1} of {len(candidates)}: {here[-1]:.2f} s here, {there[-1]:.2f} s by ssh", flush=True)
        first = device.sent_bytes
        device.close()
        again = Ssh("ssh://board", sys.executable)
        again.send([file for files in candidates for file in files] + [inputs])
        second = again.sent_bytes
        again.close()
    return {
        "candidates": len(candidates),
        "seconds_here": here,
        "seconds_by_ssh": there,
        "ratio": sum(there) / sum(here),
        "connecting_s": connecting,
        "bytes_first": first,
        "bytes_second": second,
        "bytes_of_agent_each": AGENT.stat().st_size,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("orders", type=Path)
    parser.add_argument("--note", default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = compared(asked.orders.resolve(), Path(scratch))
    write_json(asked.out, {"edgekd": __version__, "cpu": machine().model, "note": asked.note} | result)
    print({key: value for key, value in result.items() if not isinstance(value, list)})
