"""Every way to distil, trained alike: CIFAR-10, ResNet-56 → ResNet-8, 10 epochs; or CIFAR-10 with small convolutional
networks, 30 epochs; or the embedded digits, 40.

    python tests/benchmarks/methods.py --list
    EDGEKD_DATA=DIR python tests/benchmarks/methods.py kd hint --seed 0       train what is not there yet
    EDGEKD_DATA=DIR python tests/benchmarks/methods.py --all --card digits    all, on digits
    python tests/benchmarks/methods.py --table [--card digits]                draw the table

Each finished training writes results/methods/CARD-NAME-SEED.json: recipe, epochs, hardware, accuracies, time. Test data
is read once, after it. The tuning budget is the same for every row: none, one setting each, the paper's where it names
one for CIFAR. A training that is cut goes on where it was when it is called again (`--work`).
"""

import argparse
import dataclasses
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.card import Card, Teacher
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.devices.local import Local
from edgekd.distill.loop import best_score
from edgekd.distill.student import TrainingOptions, assist, learn
from edgekd.distill.tasks.classification import accuracy
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.teacher import teach
from edgekd.distributions import student_t
from edgekd.nets.deployed import Deployed, count_params
from edgekd.nets.families import make
from edgekd.nets.teachers import load_teacher_file
from edgekd.nets.weights import save_state
from edgekd.recipe import Recipe
from edgekd.scores import ACCURACY
from edgekd.spec import build
from edgekd.tasks.known import load_card

RESULTS = Path(__file__).parent / "results" / "methods"
LOW, HIGH, LAST = "lower layer", "upper layer", "last map"
LAYERS = {
    "cifar10": {LOW: "layer1", HIGH: "layer2", LAST: "layer3"},
    "cifar10-cnn": {LOW: "2", HIGH: "3", LAST: "6"},
    "digits": {LOW: "2", HIGH: "3", LAST: "6"},
}
EPOCHS = {"cifar10": 10, "cifar10-cnn": 30, "digits": 40}
BASE: dict[str, dict[str, Any]] = {
    "cifar10": {"batch_size": 128, "learning_rate": 0.1},
    "cifar10-cnn": {"batch_size": 64, "learning_rate": 0.05},
    "digits": {"batch_size": 64, "learning_rate": 0.05},
}
SHAPES: dict[str, dict[str, Any]] = {
    "cifar10": {"depth": 8, "width": 16},
    "cifar10-cnn": {"channels": [8, 16], "hidden": 64, "grid": 4},
    "digits": {"channels": [8, 16], "hidden": 32},
}
BETWEEN: dict[str, dict[str, Any]] = {  # larger than the student, smaller than the teacher
    "cifar10": {"depth": 14, "width": 16},
    "cifar10-cnn": {"channels": [16, 32], "hidden": 64, "grid": 4},
    "digits": {"channels": [12, 24], "hidden": 48},
}
KD: dict[str, Any] = {"losses": {"kd": 0.9, "ce": 0.1}}


def on(term: str, layer: str, weight: float, **more: Any) -> dict[str, Any]:
    """A term between the same layers of both."""
    return {"term": term, "teacher": layer, "student": layer, "weight": weight, **more}


ROWS: dict[str, dict[str, Any]] = {
    "alone": {"losses": {"ce": 1.0}},
    "label smoothing": {"losses": {"ce": 1.0}, "label_smoothing": 0.1},
    "kd": KD,
    "kd online": KD,
    "kd, fresh views": KD,
    "kd, bf16": KD | {"precision": "bf16"},
    "kd, accumulated": KD | {"accumulate": 4},
    "kd, compiled": KD | {"compile": True},
    "soft ce": {"losses": {"soft_ce": 0.9, "ce": 0.1}},
    "mse": {"losses": {"mse": 1.0}},
    "dkd": {"losses": {"ce": 1.0, "dkd": 1.0}},
    "dist": {"losses": {"ce": 1.0, "dist": 1.0}, "dist_beta": 2.0, "dist_gamma": 2.0},
    "standardized kd": KD | {"standardize": True, "temperature": 2.0},
    "hint": KD | {"features": [on("hint", LAST, 1.0)]},
    "attention": KD | {"features": [on("attention", layer, 1000.0) for layer in (LOW, HIGH, LAST)]},
    "similarity": KD | {"features": [on("similarity", LAST, 3000.0)]},
    "vid": KD | {"features": [on("vid", LAST, 1.0)]},
    "rkd": KD | {"features": [on("rkd", LAST, 0.1)]},
    "crd": KD | {"features": [on("crd", LAST, 0.8)]},
    "adversarial": KD | {"features": [{"term": "adversarial", "weight": 0.1}]},
    "staged": {
        "stages": [
            {"epochs": 0.2, "features": [on("hint", HIGH, 1.0)]},
            {"epochs": 0.2, "features": [on("hint", LAST, 1.0)]},
            {"epochs": 0.6, **KD},
        ]
    },
    "adversarial staged": {
        "stages": [
            {"epochs": 0.2, "features": [on("hint", HIGH, 1.0)]},
            {"epochs": 0.2, "features": [on("hint", LAST, 1.0), on("adversarial", LAST, 0.1)]},
            {"epochs": 0.6, **KD, "features": [{"term": "adversarial", "weight": 0.1}]},
        ]
    },
    "two teachers": KD,
    "two teachers, surest": KD | {"combine": "confidence"},
    "assistant": KD,
    "mutual": {"losses": {"ce": 1.0, "mutual": 1.0}},
    "linear temperature": KD | {"temperature_schedule": "linear", "temperature": 8.0, "temperature_end": 1.0},
    "cosine temperature": KD | {"temperature_schedule": "cosine", "temperature": 8.0, "temperature_end": 1.0},
    "exponential temperature": KD | {"temperature_schedule": "exponential", "temperature": 8.0, "temperature_end": 1.0},
    "sigmoid temperature": KD | {"temperature_schedule": "sigmoid", "temperature": 4.0, "temperature_rate": 1.0},
    "learned temperature": KD | {"temperature_schedule": "learned"},
    "adversarial temperature": KD | {"temperature_schedule": "adversarial"},
    "gaussian labels": KD | {"sampling": "gaussian", "sampling_strength": 1.0},
    "gamma labels": KD | {"sampling": "gamma", "sampling_strength": 10.0},
    "poisson labels": KD | {"sampling": "poisson", "sampling_strength": 10.0},
    "point labels": KD | {"sampling": "points", "sampling_strength": 10.0},
}


def card_of(card_name: str, name: str, seed: int, epochs: int) -> Card:
    """The card with the row's recipe and teachers."""
    card = load_card(card_name)
    row = place_layers(ROWS[name], LAYERS[card_name])
    stages = row.get("stages", [])
    for stage, share in zip(stages, [stage["epochs"] for stage in stages], strict=True):
        stage["epochs"] = max(1, round(share * epochs))
    base = BASE[card_name] | {"epochs": epochs, "seed": seed}
    if name == "kd, fresh views":
        base["views"] = epochs  # each epoch its own, as with --online, but computed once for all seeds
    recipe = build(Recipe, base | row, name)
    mirrored = dataclasses.replace(card.augment, flip=bool(card.augment.flip))  # at random, in all rows
    card = dataclasses.replace(card, recipe=recipe, augment=mirrored)
    if name == "assistant":
        assistant = Teacher(family=card.teacher.family, shape=BETWEEN[card_name])
        card = dataclasses.replace(card, assistants=(assistant,))
    return card


def place_layers(thing: Any, layers: dict[str, str]) -> Any:
    """The row with the card's own names of layers."""
    if isinstance(thing, dict):
        return {key: place_layers(value, layers) for key, value in thing.items()}
    if isinstance(thing, list):
        return [place_layers(value, layers) for value in thing]
    return layers.get(thing, thing) if isinstance(thing, str) else thing


def train_row(card_name: str, name: str, seed: int, epochs: int, work: Path) -> None:
    """Train one row, test it once, write its JSON."""
    out = RESULTS / f"{card_name}-{name.replace(' ', '_').replace(',', '')}-{seed}.json"
    if out.exists():
        return
    card = card_of(card_name, name, seed, epochs)
    data = Path() if card_name == "digits" else Path(os.environ["EDGEKD_DATA"])
    folder = None if card_name == "digits" else data / "cifar10"
    splits = load_train_and_validation(card, folder)
    both = (examples_of(card, splits[0]), examples_of(card, splits[1]))
    if card_name == "cifar10":
        teachers = [load_teacher_file(card, data / "teachers" / "cifar10-resnet56.safetensors")]
    else:
        teachers = [teach(card, both, None, work / f"{card_name}-teacher.safetensors")]
    if name.startswith("two teachers"):
        teachers.append(second_teacher(card, data, both, work))
    scratch = work / out.stem
    teachers = [*assist(card, teachers[0], both, scratch, TrainingOptions()), *teachers[1:]]
    torch.manual_seed(seed)
    net = make(card, card.student, SHAPES[card_name], "student.knobs")
    options = TrainingOptions(online=name == "kd online")
    history = learn(card, SHAPES[card_name], net, teachers, both, scratch / "student", options, name)
    test = load_test(card, folder)
    reached = accuracy(Deployed(net, card.data), examples_of(card, test), "fp32")
    save_state(net, scratch / "student.safetensors", {"card": card_name})
    told = {
        "schema_version": 1,
        "name": name,
        "card": card_name,
        "seed": seed,
        "epochs": epochs,
        "recipe": {key: value for key, value in dataclasses.asdict(card.recipe).items() if value != default(key)},
        "student_parameters": count_params(net),
        "training_images": len(both[0]),
        "validation_accuracy": best_score(card.recipe, history, ACCURACY),
        "test_accuracy": reached,
        "test_images": len(test),
        "train_seconds": round(sum(entry["seconds"] for entry in history), 1),
        "validation_by_epoch": [round(entry["validation_accuracy"], 4) for entry in history],
        "hardware": f"{Local().facts().model}, {torch.get_num_threads()} thread, shared CPU, fp32",
        "torch": torch.__version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"{out.stem}: test {reached:.4f}", flush=True)


def default(key: str) -> Any:
    """The recipe's default, which needs no telling."""
    return getattr(Recipe(epochs=1), key)


def second_teacher(card: Card, data: Path, both: Any, work: Path) -> Any:
    """CIFAR's ResNet-20, or a smaller network trained here."""
    if card.name == "cifar10":
        smaller = dataclasses.replace(card, teacher=Teacher(family="cifar-resnet", shape={"depth": 20, "width": 16}))
        return load_teacher_file(smaller, data / "teachers" / "cifar10-resnet20.safetensors")
    smaller = dataclasses.replace(card, teacher=dataclasses.replace(card.teacher, shape=BETWEEN[card.name]))
    return teach(smaller, both, None, work / f"{card.name}-teacher-2.safetensors")


def results(card_name: str) -> list[dict[str, Any]]:
    """What was told of each finished training of that card."""
    told: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return [each for each in told if each["card"] == card_name]


def table(card_name: str) -> None:
    """The rows that are there, as markdown."""
    found: dict[str, list[dict[str, Any]]] = {}
    for told in results(card_name):
        found.setdefault(told["name"], []).append(told)
    print("| method | seeds | test accuracy, % | validation, % | epochs | training, s |\n|---|---|---:|---:|---:|---:|")
    for name in ROWS:
        rows = sorted(found.get(name, []), key=lambda told: int(told["seed"]))
        if rows:
            tests = [100 * told["test_accuracy"] for told in rows]
            spread = f"{np.mean(tests):.2f} ± {statistics.stdev(tests):.2f}" if len(tests) > 1 else f"{tests[0]:.2f}"
            validation = 100 * float(np.mean([told["validation_accuracy"] for told in rows]))
            seconds = float(np.mean([told["train_seconds"] for told in rows]))
            seeds = ", ".join(str(told["seed"]) for told in rows)
            print(f"| {name} | {seeds} | {spread} | {validation:.2f} | {rows[0]['epochs']} | {seconds:.0f} |")


def paired(card_name: str, first: str, second: str) -> None:
    """The difference of two rows, seed by seed, with its 95 % interval by Student's t."""
    by_seed: dict[int, dict[str, float]] = {}
    for told in results(card_name):
        by_seed.setdefault(told["seed"], {})[told["name"]] = 100 * told["test_accuracy"]
    points = [found[first] - found[second] for found in by_seed.values() if {first, second} <= found.keys()]
    half = student_t(0.975, len(points) - 1) * statistics.stdev(points) / len(points) ** 0.5
    mean = statistics.mean(points)
    print(f"{first} − {second}: {mean:+.2f} points, {mean - half:+.2f} … {mean + half:+.2f}, {len(points)} seeds")


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--card", default="cifar10", choices=sorted(SHAPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--work", type=Path, default=Path("methods-work"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--paired", nargs=2, metavar="NAME")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.list:
        print("\n".join(ROWS))
    for name in list(ROWS) if asked.all else asked.names:
        epochs = asked.epochs or EPOCHS[asked.card]
        train_row(asked.card, name, asked.seed, epochs, asked.work)
    if asked.paired:
        paired(asked.card, *asked.paired)
    if asked.table:
        table(asked.card)


if __name__ == "__main__":
    main()
