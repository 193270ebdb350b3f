"""Segmentation: the same student alone and distilled, with several seeds, each as mean IoU on test images.

    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/segmentation.py TEACHER OUT.json alone 0 1 2
    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/segmentation.py TEACHER OUT.json kd 0 1 2

TEACHER is the `teacher.safetensors` of a finished run of the card `nuclei`, whose settings are used. The way is `alone`
(cross-entropy), `kd` (the card's recipe) or `channel` (the same with channel-wise distillation of the logits). What
OUT.json holds already is not trained again. The networks are torch's, in fp32; the teacher is scored, too.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.card import Card
from edgekd.distill.distributed import World
from edgekd.distill.student import learn, new_student
from edgekd.distill.tasks.segmentation import MAPS
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make_shapes
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.recipe import Feature
from edgekd.tasks.known import load_card

WAYS: dict[str, dict[str, Any]] = {
    "alone": {"losses": {"ce": 1.0}, "temperature": 4.0},
    "kd": {},
    "channel": {"features": (Feature(term="channel", weight=3.0),)},
}


def card_of(way: str, seed: int) -> Card:
    """The card with the terms and the seed of one training; views differ between seeds, too."""
    card = load_card("nuclei")
    return dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, seed=seed, **WAYS[way]))


def main() -> None:
    """Train each student that OUT.json does not hold yet."""
    file, out, way, *seeds = sys.argv[1:]
    source = Path(os.environ["EDGEKD_DATA"], "nuclei")
    plain = load_card("nuclei")
    train, validation = MAPS.load(plain, source)
    test = MAPS.examples(plain, MAPS.load_test(plain, source, Path()))
    data = MAPS.examples(plain, train), MAPS.examples(plain, validation)
    if way == "alone":
        teacher = LoadedTeacher(Deployed(make_teacher_net(plain), plain.data), Path(file))
    else:
        teacher = load_teacher_file(plain, Path(file))
        keep(Path(out), "teacher", {"test_miou": MAPS.score(teacher.module, test, "fp32", World())})
    shape = make_shapes(plain, plain.student)[0]
    for seed in map(int, seeds):
        name = f"{way}, seed {seed}"
        if Path(out).exists() and name in json.loads(Path(out).read_text()):
            continue
        card, began = card_of(way, seed), time.process_time()
        net, _ = new_student(card, shape, teacher)
        with tempfile.TemporaryDirectory() as folder:
            history = learn(card, shape, net, [teacher], data, Path(folder, "student"))
        scored = MAPS.score(Deployed(net, card.data), test, "fp32", World())
        known = {"test_miou": scored, "validation_miou": history[-1]["validation_miou"]}
        keep(Path(out), name, known | {"cpu_seconds": round(time.process_time() - began), "shape": shape})
        print(name, known, flush=True)


def keep(out: Path, name: str, values: dict[str, Any]) -> None:
    """Add one entry to the file, and the mean of each way over its seeds."""
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"schema_version": 1}
    content[name] = values
    for way in WAYS:
        scores = [entry["test_miou"] for key, entry in content.items() if key.startswith(f"{way}, seed")]
        if scores:
            content[way] = {"seeds": len(scores), "mean_test_miou": float(np.mean(scores))}
            content[way] |= {"deviation": float(np.std(scores, ddof=1))} if len(scores) > 1 else {}
    write_json(out, content)


if __name__ == "__main__":
    main()
