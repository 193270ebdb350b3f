"""A small finished run, made up: no training, no measuring."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.card import Budget
from edgekd.figures import Figure, ModelFigures, Placement
from edgekd.files import write_json
from edgekd.judge import budget_figures, judge
from edgekd.result import Result, write_bench, write_result
from edgekd.target import load_target

IMAGES = 200
NAUGHTY = "<script>alert(\"x\")<\\/script> & </script><img src=x onerror=alert(1)> 'q' %{x} |`"
"""What no name should be, and what must be shown as it is: no file name, so it is for texts, not for models."""

FINGERPRINT = {"provider": "CPUExecutionProvider", "onnxruntime": "1.24.1", "python": "3.11.7", "cpu": "a CPU",
               "nodes_by_provider": {"CPUExecutionProvider": 12}}  # fmt: skip


def a_model(name: str, precision: str, size: int, latency_ms: float, accuracy: float, **more: Any) -> ModelFigures:
    return ModelFigures(
        name=name,
        file=f"{precision}.onnx",
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        size_bytes=size,
        precision=precision,
        params=size // 4,
        macs=10 * size,
        scores={"accuracy": Figure(accuracy, "measured")},
        latency_p50_ms=Figure(latency_ms, "measured", 0.95 * latency_ms, 1.1 * latency_ms),
        latency_p95_ms=Figure(1.4 * latency_ms, "measured"),
        peak_memory_mb=Figure(60.0, "measured"),
        energy_mj=Figure(why="no counter here"),
        fingerprint=FINGERPRINT,
        **more,
    )


def some_models(student: str) -> tuple[ModelFigures, ...]:
    placement = Placement(
        nodes={"CPUExecutionProvider": 10, "XnnpackExecutionProvider": 4},
        time_share={"CPUExecutionProvider": 0.75, "XnnpackExecutionProvider": 0.25},
        fell_back={"Pad": 1},
        fused=6,
        unfused=2,
        blockers={"Pad": 2},
        costliest=(
            {"node": "conv<1>", "op_type": "Conv", "provider": "CPUExecutionProvider", "us": 12.5, "share": 0.4},
        ),
    )
    return (
        a_model("teacher", "fp32", 400_000, 1.0, 0.95),
        a_model("student fp32", "fp32", 90_000, 0.3, 0.93),
        a_model(
            student, "int8", 30_000, 0.2, 0.92, placement=placement, batches={"batch 8": Figure(9_000, "measured")}
        ),
    )


def keep_answers(folder: Path, models: tuple[ModelFigures, ...], target: str, labels: Any) -> None:
    """Records of calls and logits, as the worker leaves them; each model is right as often as it says."""
    noise = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        stem = f"{model.name.replace(' ', '-')}@{target}"
        median = 1e-3 * (model.latency_p50_ms.value or 0)
        calls = [{"latency_s": (median * noise.lognormal(0, 0.05, 120)).tolist()} for _ in range(3)]
        write_json(folder / f"{stem}.latency.json", {"model_sha256": model.sha256, "records": calls})
        wrong = np.arange(IMAGES) >= round((model.score.value or 0) * IMAGES)
        logits = np.eye(3, dtype=np.float32)[(labels + wrong) % 3]
        np.save(folder / f"{stem}.test.{model.sha256[:12]}.npy", logits)


def candidates() -> list[dict[str, Any]]:
    def figures(size_kb: float, latency_ms: float) -> dict[str, Any]:
        known = {"size_kb": Figure(size_kb, "exact"), "peak_memory_mb": Figure(50.0, "measured")}
        latency = Figure(latency_ms, "measured", 0.9 * latency_ms, 1.2 * latency_ms)
        return {key: dataclasses.asdict(figure) for key, figure in {**known, "latency_p50_ms": latency}.items()}

    return [
        {"shape": {"width": width, "kind": NAUGHTY}, "params": 100 * width, "macs": 9_000 * width,
         "precisions": {"int8": figures(width, 0.02 * width), "fp32": figures(3 * width, 0.03 * width)}}
        for width in (4, 8, 16, 32)
    ]  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder; `student` is the name of the shipped model, `benched` other targets it was measured on."""

    def make(name: str = "digits@cpu-x86", student: str = "student int8", benched: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / "runs" / name
        models = some_models(student)
        budget = Budget(latency_p50_ms=0.25, size_kb=20, min_accuracy=0.9, max_accuracy_drop=10)
        verdict = judge(budget_figures(models[2], models[0].score), budget)
        folder.mkdir(parents=True)
        write_result(
            Result(
                card="digits", target="cpu-x86", verdict=verdict, chosen=student, why_chosen=f"fast {NAUGHTY}",
                models=models, shape={"width": 16}, candidates=4, test_examples=IMAGES, test_reads=1,
                parity={"examples": 50, "max_abs": 1e-6, "relative": 1e-7, "same": 1.0, "same_words": "same class"},
                notes=(f"mind {NAUGHTY}",), training={"epochs": 3, "seconds": 65.0, "validation_accuracy": 0.93},
            ),
            folder / "result.json",
        )  # fmt: skip
        data = {"source": "digits", "classes": ["zero", NAUGHTY, "two & <b>"]}
        card = {"name": "digits", "data": data, "teacher": {"weights": ""}}
        target = {"name": "cpu-x86", "provider": {"name": "CPUExecutionProvider"}}
        snapshot = {"card": card, "target": target, "budget": budget.limits(), "files": {}}
        write_json(folder / "run.json", snapshot)
        write_json(folder / "candidates.json", {"schema_version": 1, "target": "cpu-x86", "candidates": candidates()})
        labels = np.arange(IMAGES) % 3
        (folder / "data").mkdir()
        np.save(folder / "data" / "test.labels.npy", labels)
        keep_answers(folder / "records", models, "cpu-x86", labels)
        for other in benched:
            place = folder / "bench" / other
            keep_answers(place, models, other, labels)
            about = {"split": "test", "images": IMAGES, "command": f"edgekd bench RUN -t {other}"}
            write_bench(place / "bench.json", load_target(other), models, **about)
        return folder

    return make
