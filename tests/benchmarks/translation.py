"""Ways to distil a translator: alone, per token at several temperatures, per sequence, and both; greedy and by beam.

    python tests/benchmarks/translation.py CARD DATA TEACHER.safetensors FOLDER OUT.json [--seeds 3]
        [--ways alone sequence …] [--repeated alone …] [--temperatures 0.1,0.5,1,2,4] [--beams 1,4] [--target cpu-x86]

TEACHER is what `edgekd teach CARD` wrote. The student is the card's first shape, each way with the card's epochs; all
ways, or those of --repeated alone, with all seeds. All choices are the reader's: validation and test scores are
listed side by side, and the test part is read once, after all trainings. FOLDER keeps what is trained, so that an
interrupted run goes on.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import sacrebleu
import torch

from edgekd.bench.measure import Subject, measure_speed
from edgekd.bench.records import Effort
from edgekd.candidate import Shape
from edgekd.card import Card
from edgekd.data.arrays import keep_split
from edgekd.data.images import Split
from edgekd.data.translation import keep_pair_tokenizer, load_pairs_training, load_test_pairs, settled_pairs
from edgekd.devices.local import Local, connect
from edgekd.distill.student import learn
from edgekd.distill.tasks.known import examples_of
from edgekd.export.onnx import export
from edgekd.export.precisions import make_variant
from edgekd.external import model_bytes
from edgekd.files import read_json, write_json
from edgekd.nets.families import make, shapes_of
from edgekd.nets.generation import generate
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file
from edgekd.nets.translation import Seq2Seq
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.recipe import Recipe
from edgekd.target import load_target
from edgekd.tasks.known import load_card
from edgekd.tasks.translation import TRANSLATION, texts_of, tokenizer_from


def ways(recipe: Recipe, temperatures: list[float]) -> dict[str, Recipe]:
    """The recipes that are compared, by name."""
    tokens: dict[str, Any] = {"losses": {"kd": 1.0}, "sequences": "data"}
    found = {"alone": dataclasses.replace(recipe, losses={"ce": 1.0}, sequences="data")}
    found |= {f"token, T {t:g}": dataclasses.replace(recipe, temperature=t, **tokens) for t in temperatures}
    found["sequence"] = dataclasses.replace(recipe, losses={"ce": 1.0}, sequences="teacher")
    both: dict[str, Any] = {"losses": {"kd": 1.0, "ce": 1.0}, "sequences": "both", "temperature": 1.0}
    return found | {"token and sequence": dataclasses.replace(recipe, **both)}


def student(card: Card, shape: Shape, recipe: Recipe, data: Any, teacher: LoadedTeacher, folder: Path) -> Seq2Seq:
    """One student, trained in `folder` or loaded from there."""
    mine, out = dataclasses.replace(card, recipe=recipe), folder / "student.safetensors"
    torch.manual_seed(recipe.seed)
    net = make(mine, mine.student, shape, "student.knobs")
    assert isinstance(net, Seq2Seq)
    if not out.exists():
        begin = time.perf_counter()
        learn(mine, shape, net, [teacher], data, folder / "training")
        write_json(folder / "seconds.json", {"seconds": time.perf_counter() - begin})
        save_state(net, out, {})
    load_into(net, read_state(out), out)
    return net.eval()


def scores(net: Seq2Seq, card: Card, parts: Mapping[str, Split], beams: list[int]) -> dict[str, float]:
    """BLEU and chrF of the network in torch, for each part and width of the beam."""
    found: dict[str, float] = {}
    for part, split in parts.items():
        for beam in beams:
            sources: Any = split.read(np.arange(len(split)))
            ids = generate(net, sources, card.data.max_length, beam, card.data.length_penalty)
            texts = texts_of(ids, tokenizer_from(card.data.tokenizer, "its tokenizer"))
            own = TRANSLATION.score(texts, np.asarray(split.labels))
            found |= {f"{part} {name}, beam {beam}": round(value, 2) for name, value in own.items()}
    return found


def timed(nets: dict[str, Seq2Seq], card: Card, target: str, inputs: Path, folder: Path) -> list[dict[str, Any]]:
    """Size and time of each network's files in fp32 and int8, with the beam of the card; all take turns."""
    subjects = []
    for name, net in nets.items():
        file = folder / f"{name}-fp32.onnx"
        export(net, card, load_target(target), file, {})
        int8 = file.with_name(f"{name}-int8.onnx")
        make_variant(file, "int8", load_target(target), None, int8)
        subjects += [Subject(name=one.stem, file=one, precision=one.stem[-4:]) for one in (file, int8)]
    figures = measure_speed(subjects, connect(load_target(target)), inputs, None, Effort(placement=False))
    keys = ("latency_p50_ms", "first_token_ms", "tokens_per_s")
    return [
        {"file": model.file, "size_bytes": model_bytes(subject.file), "notes": list(model.notes)}
        | {key: [getattr(model, key).value, getattr(model, key).low, getattr(model, key).high] for key in keys}
        for subject, model in zip(subjects, figures, strict=True)
    ]


def main() -> None:
    """Train every way with every seed, then read the test part and write the figures."""
    parser = argparse.ArgumentParser(description="Compare ways to distil a translator.")
    for name in ("card", "data", "teacher", "folder", "out"):
        parser.add_argument(name)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", help="the ways to compare, in this order; default all")
    parser.add_argument("--repeated", nargs="*")
    parser.add_argument("--temperatures", default="0.1,0.5,1,2,4")
    parser.add_argument("--beams", default="1,4")
    parser.add_argument("--target", default="cpu-x86")
    asked = parser.parse_args()
    folder, source, beams = Path(asked.folder), Path(asked.data), [int(beam) for beam in asked.beams.split(",")]
    card = load_card(asked.card)
    train, validation = load_pairs_training(card, source)
    card = settled_pairs(card, validation)
    teacher = load_teacher_file(card, Path(asked.teacher))
    shape = shapes_of(card, card.student)[0]
    data = (examples_of(card, train), examples_of(card, validation))
    nets: dict[tuple[str, int], Seq2Seq] = {}
    known = ways(card.recipe, [float(t) for t in asked.temperatures.split(",")])
    for name in asked.ways or known:
        recipe = known[name]
        for seed in range(asked.seeds if asked.repeated is None or name in asked.repeated else 1):
            place = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            nets[name, seed] = student(card, shape, dataclasses.replace(recipe, seed=seed), data, teacher, place)
    keep_pair_tokenizer(card, source, folder / "tokenizer.json")
    parts = {"validation": validation, "test": load_test_pairs(card, source, folder / "tokenizer.json")}  # the one time
    assert isinstance(teacher.net, Seq2Seq)
    rows: list[dict[str, Any]] = [{"way": "teacher", **scores(teacher.net.eval(), card, parts, beams)}]
    for (name, seed), net in nets.items():
        place = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
        rows.append({"way": name, "seed": seed, **read_json(place / "seconds.json"), **scores(net, card, parts, beams)})
        print(json.dumps(rows[-1]), flush=True)
    first = next(net for (name, _), net in nets.items() if name != "alone")
    inputs = keep_split(validation, folder / "validation")
    content = {
        "schema_version": 1,
        "card": card.name,
        "data": {key: value for key, value in dataclasses.asdict(card.data).items() if key != "tokenizer"},
        "teacher": card.teacher.shape,
        "student": shape,
        "recipe": dataclasses.asdict(card.recipe),
        "cpu": Local().facts().model,
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "sacrebleu": sacrebleu.__version__,
        },
        "scores": rows,
        "speed": timed({"teacher": teacher.net, "student": first}, card, asked.target, inputs, folder),
    }
    Path(asked.out).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
