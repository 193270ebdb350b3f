"""What ranking by learning chooses against capacity, and what the chosen networks learn in a whole training.

    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/ranking.py search WORK
    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/ranking.py train WORK OUT.json 0 "family=vgg width=16 …"

`search` times 30 candidates of four families with `edgekd search --rank capacity`, keeps the seconds, and ranks with
`--rank learning` those that meet the limits of CARD. The data are the first part of CIFAR-10's training images (9,000
to learn from and 1,000 for validation), the teacher is the given ResNet-20. `train` distils the named shapes of the
first round from new for the card's epochs, with the seed (0 above), and scores them in fp32 on the 10,000 test images,
which nothing was chosen by. What OUT.json holds already is not trained again.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgekd.candidate import shape_name
from edgekd.card import Card
from edgekd.distill.distributed import World
from edgekd.distill.student import learn
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.untrained import new_student
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.teachers import load_teacher_file
from edgekd.tasks.known import load_card

CARD = """
title = "CIFAR-10, 10,000 training images: four families"
task = "image-classification"

[data]
source = "parquet"
size = 32
channels = 3
classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[augment]
crop_padding = 4
flip = true

[teacher]
family = "cifar-resnet"
shape = { depth = 20, width = 16 }

[[student.families]]
family = "cifar-resnet"
knobs = { depth = [8, 14, 20], width = [8, 16], shortcut = ["B"], stem_stride = [1, 2] }

[[student.families]]
family = "vgg"
knobs = { width = [8, 16, 24], layers = [1, 2] }

[[student.families]]
family = "separable"
knobs = { width = [16, 24, 32], layers = [1, 2] }

[[student.families]]
family = "inverted-residual"
knobs = { width = [8, 16, 24], layers = [1, 2] }

[recipe]
epochs = 8
learning_rate = 0.1
temperature = 4.0
alpha = 0.9
views = 2
precision = "auto"

[budget]
size_kb = 100

[budget.cpu-x86]
latency_p50_ms = 0.2
"""
TEACHER = Path("teachers", "cifar10-resnet20.safetensors")


def search(work: Path, data: Path) -> None:
    """Let edgekd search by capacity, then by learning, in the folder of one run."""
    part = work / "data"
    part.mkdir(parents=True, exist_ok=True)
    for name in ("train-00000-of-00005.parquet", "test-00000-of-00001.parquet"):
        if not (part / name).exists():
            (part / name).symlink_to((data / "cifar10" / name).resolve())
    (work / "card.toml").write_text(CARD, encoding="utf-8")
    seconds = {}
    for rank in ("capacity", "learning"):
        began = time.perf_counter()
        command = ["search", "card.toml", "-t", "cpu-x86", "--data", "data", "--teacher", str(data / TEACHER)]
        done = subprocess.run(
            [sys.executable, "-m", "edgekd", *command, "--out", f"run-{rank}", "--rank", rank], cwd=work, check=False
        )
        seconds[rank] = {"seconds": round(time.perf_counter() - began, 1), "exit_code": done.returncode}
    write_json(work / "seconds.json", seconds)


def card_of(work: Path, seed: int) -> Card:
    """The card of the search with another seed."""
    card = load_card(str(work / "card.toml"))
    return dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, seed=seed))


def train(work: Path, out: Path, seed: int, names: list[str], data: Path) -> None:
    """Train the named shapes with that seed, unless OUT.json holds them already."""
    found = json.loads((work / "run-learning" / "candidates.json").read_text(encoding="utf-8"))
    card = card_of(work, seed)
    learning, teacher = learning_of(card.data), load_teacher_file(card, data / TEACHER)
    parts = learning.load(card, work / "data")
    both = learning.examples(card, parts[0]), learning.examples(card, parts[1])
    test = learning.examples(card, learning.load_test(card, work / "data", Path()))
    shapes = {shape_name(score["shape"]): score["shape"] for score in found["scores"]}
    for shape in (shapes[name] for name in names):
        name = f"{shape_name(shape)}, seed {seed}"
        content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"schema_version": 1}
        if name in content:
            continue
        net, _ = new_student(card, shape, teacher)
        with tempfile.TemporaryDirectory() as folder:
            history = learn(card, shape, net, [teacher], both, Path(folder, "student"))
        content[name] = {
            "validation_accuracy": history[-1]["validation_accuracy"],
            "test_accuracy": learning.score(Deployed(net, card.data), test, "fp32", World()),
            "seconds": round(sum(entry["seconds"] for entry in history)),
        }
        write_json(out, content)
        print(name, content[name], flush=True)


def main() -> None:
    """Search, or train what took part in the search."""
    step, work, *rest = sys.argv[1:]
    data = Path(os.environ["EDGEKD_DATA"])
    if step == "search":
        search(Path(work), data)
    else:
        train(Path(work), Path(rest[0]), int(rest[1]), rest[2:], data)


if __name__ == "__main__":
    main()
