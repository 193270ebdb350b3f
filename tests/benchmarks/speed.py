"""How fast edgekd distils, against torchdistill and a plain loop: CIFAR-10, ResNet-56 → ResNet-20, batches of 128.

    EDGEKD_DATA=DIR python tests/benchmarks/speed.py results/speed.json --torchdistill PYTHON

PYTHON is an interpreter that has torchdistill and edgekd[train]. All contenders run beside each other, each a process
with one thread, and train in turns, in another order each round; so what disturbs the machine disturbs all. Ratios are
formed within a round; shown are the median and a 95 % interval by Student's t on their logarithms.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from edgekd import __version__
from edgekd.bench.statistics import between
from edgekd.devices.local import Local
from edgekd.files import write_json

CONTENDERS = (
    "torchdistill",
    "plain loop",
    "edgekd online",
    "edgekd cached",
    "edgekd fill",
    "edgekd alone",
    "limit",
)
BATCH, VIEWS = 128, 8

Round = dict[str, float]
"""Seconds for one image, by contender."""

RATIOS: dict[str, Callable[[Round], float]] = {
    "edgekd cached / torchdistill": lambda s: s["torchdistill"] / s["edgekd cached"],
    "edgekd cached / plain loop": lambda s: s["plain loop"] / s["edgekd cached"],
    "edgekd online / torchdistill": lambda s: s["torchdistill"] / s["edgekd online"],
    "edgekd online / plain loop": lambda s: s["plain loop"] / s["edgekd online"],
    "plain loop / torchdistill": lambda s: s["torchdistill"] / s["plain loop"],
    "limit / torchdistill": lambda s: s["torchdistill"] / s["limit"],
    "edgekd cached / limit": lambda s: s["limit"] / s["edgekd cached"],
    "edgekd cached / edgekd alone": lambda s: s["edgekd alone"] / s["edgekd cached"],
    "30 epochs with the fill / torchdistill": lambda s: with_fill(s, 30),
    "100 epochs with the fill / torchdistill": lambda s: with_fill(s, 100),
}
"""Speed over speed."""
WANTED = {
    "edgekd cached / torchdistill": 3.0,
    "30 epochs with the fill / torchdistill": 2.3,
    "100 epochs with the fill / torchdistill": 2.8,
    "edgekd online / torchdistill": 1.3,
}


def with_fill(seconds: Round, epochs: int) -> float:
    """The time of torchdistill's epochs over that of as many from the cache and of filling it with VIEWS views."""
    ours = min(epochs, VIEWS) * seconds["edgekd fill"] + epochs * seconds["edgekd cached"]
    return epochs * seconds["torchdistill"] / ours


class Contender:
    """A process that trains a turn when told to."""

    def __init__(self, name: str, python: str, asked: dict[str, Any], stack: ExitStack, log: Path) -> None:
        self.name, self.log = name, log
        script = Path(__file__).with_name("speed_contenders.py")
        said = stack.enter_context(log.open("w"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = stack.enter_context(
            subprocess.Popen(
                [python, str(script), name, json.dumps(asked)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment,
            )
        )

    def turn(self) -> dict[str, float]:
        """A turn: its seconds, CPU seconds and images."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} has ended: {self.log.read_text()[-2000:]}")
        found: dict[str, float] = json.loads(answer)
        return found


def measure(asked: dict[str, Any], python: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """What every contender of these names answered in every round, in the order of their turns."""
    rounds = []
    draw = random.Random(0)
    with ExitStack() as stack:
        contenders = []
        for name in names:
            interpreter = python if name == "torchdistill" else sys.executable
            log = Path(asked["work"], f"{name.replace(' ', '-')}.log")
            contenders.append(Contender(name, interpreter, asked, stack, log))
            contenders[-1].turn()  # its first batches find nothing prepared
            print(f"{name}: ready", flush=True)
        for number in range(asked["turns"] - 1):
            turns = {one.name: one.turn() for one in draw.sample(contenders, len(contenders))}
            rounds.append({"load": os.getloadavg()[0], "turns": turns})
            found = per_image(rounds[-1:], "seconds")[0]
            print(f"round {number + 1}:", *(f"{name} {1 / found[name]:.0f}," for name in names), flush=True)
    return rounds


def per_image(rounds: list[dict[str, Any]], clock: str) -> list[Round]:
    """`seconds` or `cpu_seconds` for one image."""
    return [{name: turn[clock] / turn["images"] for name, turn in each["turns"].items()} for each in rounds]


def versions(python: str) -> dict[str, str]:
    """Of what was compared, asked of the interpreters themselves."""
    text = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in %r}))"
    found: dict[str, str] = {}
    for interpreter, names in ((python, ["torchdistill"]), (sys.executable, ["torch", "torchvision", "numpy"])):
        done = subprocess.run([interpreter, "-c", text % names], capture_output=True, text=True, check=True)
        found |= json.loads(done.stdout)
    return found | {"edgekd": __version__, "python": platform.python_version()}


def summary(rounds: list[Round]) -> dict[str, Any]:
    """Speeds and ratios with their intervals."""
    speeds, ratios = {}, {}
    for name in rounds[0]:
        over = between([1 / seconds[name] for seconds in rounds])
        speeds[name] = {"median": median(1 / seconds[name] for seconds in rounds), "interval_95": [over.low, over.high]}
    for name, ratio in RATIOS.items():
        try:
            each = [ratio(seconds) for seconds in rounds]
        except KeyError:  # of a contender that was left out
            continue
        over = between(each)
        ratios[name] = {"median": median(each), "mean": over.value, "interval_95": [over.low, over.high]}
        if name in WANTED:
            ratios[name]["wanted"] = WANTED[name]
    return {"images_per_second": speeds, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--torchdistill", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batches", type=int, default=20, help="of a turn")
    parser.add_argument("--workers", type=int, default=1, help="processes that load images for the DataLoaders")
    parser.add_argument("--precision", default="fp32", help="of edgekd")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="these contenders")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = {
            "data": os.environ["EDGEKD_DATA"],
            "work": folder,
            "batches": given.batches,
            "turns": given.rounds + 1,
            "workers": given.workers,
            "precision": given.precision,
        }
        rounds = measure(asked, given.torchdistill, given.only)
    content = {
        "schema_version": 1,
        **summary(per_image(rounds, "seconds")),
        "by_cpu_time": summary(per_image(rounds, "cpu_seconds")),
        "cpu_share": median(t["cpu_seconds"] / t["seconds"] for each in rounds for t in each["turns"].values()),
        "how": f"{given.rounds} rounds; a turn is {given.batches} batches of {BATCH}; order drawn anew each round; one "
        f"thread each, DataLoaders with {given.workers} workers beside it; edgekd in {given.precision}",
        "views": VIEWS,
        "cpu": Local().facts().model,
        "cores": os.cpu_count(),
        "versions": versions(given.torchdistill),
        "rounds": rounds,
    }
    write_json(given.out, content)
    for name, found in content["ratios"].items():
        low, high = found["interval_95"]
        cpu = content["by_cpu_time"]["ratios"][name]["median"]
        wanted = f", wanted {found['wanted']}" if "wanted" in found else ""
        print(f"{name}: {found['median']:.2f} [{low:.2f}, {high:.2f}]{wanted}; by CPU time {cpu:.2f}")
    print(f"share of a core that each had in its turns: {content['cpu_share']:.2f} (near 1 on a quiet machine)")


if __name__ == "__main__":
    main()
