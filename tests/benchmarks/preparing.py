"""The seconds that `prepare` takes: everything that `distill` checks before it measures or trains anything.

    python tests/benchmarks/preparing.py PHOTOS [WEIGHTS]

times it on the card `digits`, and on a card whose teacher is torchvision's ResNet-50 at 224 pixels that is fine-tuned
from WEIGHTS (without a file from random ones for 1,000 classes, which take equally long) and whose student is a
ResNet-18. PHOTOS is an image folder (train/CLASS, test/CLASS) of any number of classes. Each figure is the median of
three fresh processes, by the clock and in seconds of CPU time, which tell more on a machine that has other work:
`prepare` alone, and the imports before it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision

CARD = """
title = "Photographs, ResNet-50 at 224 pixels"
[data]
source = "image-folder"
path = {photos}
size = 224
resize = 256
channels = 3
classes = {classes}
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[teacher]
family = "torchvision"
shape = {{ model = "resnet50" }}
weights = {weights}
training = {{ epochs = 10, batch_size = 16, learning_rate = 0.02 }}
[student]
family = "torchvision"
knobs = {{ model = ["resnet18"] }}
[recipe]
epochs = 10
batch_size = 16
[budget]
size_kb = 20000
"""

ONCE = """
import sys, time
from edgekd.tasks.known import load_card
clocks = time.perf_counter, time.process_time
begin = [clock() for clock in clocks]
from edgekd.planning import Request, prepare
imported = [clock() for clock in clocks]
setup = prepare(Request(card=load_card(sys.argv[1])), [])
ended = [clock() for clock in clocks]
for here, before in ((ended, imported), (imported, begin)):
    print(*(one - other for one, other in zip(here, before)))
print(len(setup.train) + len(setup.validation))
"""


def measure(card: str, times: int = 3) -> dict[str, float]:
    """Medians over fresh processes, in seconds, and the number of images."""
    names = ("prepare_s", "prepare_cpu_s", "imports_s", "imports_cpu_s", "images")
    rows = []
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", ONCE, card], capture_output=True, text=True, check=True)
        rows.append(map(float, done.stdout.split()))
    return {
        name: round(statistics.median(column), 2) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def main() -> None:
    photos = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else Path(scratch) / "resnet50.pth"
        if not weights.exists():
            torch.save(torchvision.models.resnet50(weights=None).state_dict(), weights)
        classes = sorted(path.name for path in (photos / "train").iterdir())
        card = Path(scratch) / "photos.toml"
        given = {"photos": str(photos), "classes": classes, "weights": str(weights)}
        card.write_text(CARD.format(**{name: json.dumps(value) for name, value in given.items()}), encoding="utf-8")
        found = {"digits": measure("digits"), "ResNet-50 at 224 pixels": measure(str(card))}
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "cards": found}, indent=2))


if __name__ == "__main__":
    main()
