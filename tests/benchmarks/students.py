"""The same student alone and distilled, with several seeds, each by its score on test images.

    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/students.py nuclei TEACHER OUT.json alone 0 1 2
    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/students.py bccd TEACHER OUT.json kd 0 1 2

TEACHER is the `teacher.safetensors` of a finished run of that card, whose settings are used, on the data in the folder
of its name. The way is `alone` (the task's own loss), `kd` (the card's recipe), for `nuclei` `channel` (the same
with channel-wise distillation of the logits), or for `bccd` `kd03` (`kd` with a weight of 0.3), `hint` (the card's
recipe with hints between the convolutions of the
heads) and `foreground` (with these hints where objects are). What OUT.json holds already is not trained again. The
networks are torch's, in fp32; the teacher is scored, too.
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
from edgekd.distill.student import learn
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.untrained import new_student
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make_shapes
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.recipe import Feature
from edgekd.tasks.known import load_card, task_of

TRUNKS = ("heads.0.trunk", "heads.1.trunk")
WAYS: dict[str, dict[str, Any]] = {
    "alone": {"losses": {"ce": 1.0}, "temperature": 4.0},
    "kd": {},
    "kd03": {"losses": {"kd": 0.3, "ce": 1.0}},
    "channel": {"features": (Feature(term="channel", weight=3.0),)},
    "hint": {"features": tuple(Feature(term="hint", teacher=trunk, student=trunk) for trunk in TRUNKS)},
    "foreground": {
        "features": tuple(Feature(term="hint", teacher=trunk, student=trunk, where="foreground") for trunk in TRUNKS)
    },
}


def card_of(name: str, way: str, seed: int) -> Card:
    """The card with the terms and the seed of one training; views differ between seeds, too."""
    card = load_card(name)
    return dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, seed=seed, **WAYS[way]))


def main() -> None:
    """Train each student that OUT.json does not hold yet."""
    card_name, file, out, way, *seeds = sys.argv[1:]
    source = Path(os.environ["EDGEKD_DATA"], card_name)
    plain = load_card(card_name)
    learning, kind = learning_of(plain.data), task_of(plain.data).scores[0]
    train, validation = learning.load(plain, source)
    test = learning.examples(plain, learning.load_test(plain, source, Path()))
    data = learning.examples(plain, train), learning.examples(plain, validation)
    on_test = f"test_{kind.name}"
    if way == "alone":
        teacher = LoadedTeacher(Deployed(make_teacher_net(plain), plain.data), Path(file))
    else:
        teacher = load_teacher_file(plain, Path(file))
        keep(Path(out), "teacher", {on_test: learning.score(teacher.module, test, "fp32", World())}, on_test)
    shape = make_shapes(plain, plain.student)[0]
    for seed in map(int, seeds):
        name = f"{way}, seed {seed}"
        if Path(out).exists() and name in json.loads(Path(out).read_text()):
            continue
        card, began = card_of(card_name, way, seed), time.process_time()
        net, _ = new_student(card, shape, teacher)
        with tempfile.TemporaryDirectory() as folder:
            history = learn(card, shape, net, [teacher], data, Path(folder, "student"))
        scored = learning.score(Deployed(net, card.data), test, "fp32", World())
        known = {on_test: scored, kind.history_key: history[-1][kind.history_key]}
        spent = {"cpu_seconds": round(time.process_time() - began), "shape": shape}
        keep(Path(out), name, known | spent, on_test)
        print(name, known, flush=True)


def keep(out: Path, name: str, values: dict[str, Any], on_test: str) -> None:
    """Add one entry to the file, and the mean of each way over its seeds."""
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"schema_version": 1}
    content[name] = values
    for way in WAYS:
        scores = [entry[on_test] for key, entry in content.items() if key.startswith(f"{way}, seed")]
        if scores:
            content[way] = {"seeds": len(scores), f"mean_{on_test}": float(np.mean(scores))}
            content[way] |= {"deviation": float(np.std(scores, ddof=1))} if len(scores) > 1 else {}
    write_json(out, content)


if __name__ == "__main__":
    main()
