"""Estimated latency: the arithmetic by hand, the kernel classes by real profiles, the cache, and every refusal."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekd import units
from edgekd.bench.measure import Subject
from edgekd.bench.records import Effort, Record
from edgekd.bench.runner import make_plan
from edgekd.devices.device import Site
from edgekd.devices.local import Local
from edgekd.errors import InputError
from edgekd.export.quantize import quantize
from edgekd.figures import Figure, ModelFigures
from edgekd.search import estimate
from edgekd.search.estimate import Range, combine, profile_shares, ratio, reference_ms, shares_of, with_estimates
from edgekd.target import Hardware, Provider, Quantization, Reference, Session, Target, load_target

HERE = Local().facts()
ELSEWHERE = "aarch64" if HERE.architecture == "x86_64" else "x86_64"
DENSE = Reference(
    network="resnet18",
    precision="fp32",
    kernel_class="dense",
    latency_ms=200,
    threads=4,
    ort_version="1.20",
    source="https://example.org/dense.md",
)
DEPTHWISE = dataclasses.replace(
    DENSE, network="mobilenet_v2", kernel_class="depthwise", latency_ms=120, source="https://example.org/depthwise.md"
)
LOCAL_MS = {"resnet18": 50.0, "mobilenet_v2": 10.0}


def a_target(*references: Reference, **values: Any) -> Target:
    """A board of another architecture with these references."""
    board: dict[str, Any] = {
        "title": "a board",
        "hardware": Hardware(architecture=ELSEWHERE),  # type: ignore[arg-type]
        "provider": Provider(name="CPUExecutionProvider"),
        "reference": references,
        "name": "board",
    }
    return Target(**board | values)


def a_model(precision: str = "fp32", file: str = "x.onnx") -> tuple[ModelFigures, Subject]:
    unknown = Figure(why="measured nowhere")
    figures = ModelFigures("x", file, "0", 1_000, precision, latency_p50_ms=unknown, latency_p95_ms=unknown)
    return figures, Subject(name="x", file=Path(file), precision=precision)


def estimated(target: Target, precision: str = "fp32", file: str = "x.onnx") -> Figure:
    figures, subject = a_model(precision, file)
    return with_estimates([figures], [subject], Site(target, Local()))[0].latency_p50_ms


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Stands in for this machine's times: `here(local_ms, dense=0.75, …)`; gives the references asked for."""

    def install(local_ms: float, **shares: float) -> list[str]:
        asked: list[str] = []

        def known_ms(reference: Reference, here: Site) -> float:
            asked.append(reference.network)
            return LOCAL_MS[reference.network]

        monkeypatch.setattr(estimate, "_local_p50_ms", lambda file, target, effort: local_ms)
        monkeypatch.setattr(estimate, "profile_shares", lambda file, target: shares)
        monkeypatch.setattr(estimate, "reference_ms", known_ms)
        return asked

    return install


@pytest.mark.parametrize(
    ("reference_threads", "threads", "expected"),
    [
        pytest.param(4, 1, (4.0, 8.0, 16.0), id="the reference had more"),
        pytest.param(1, 4, (1.0, 2.0, 4.0), id="the reference had fewer"),
        pytest.param(4, 4, (4.0, 4.0, 4.0), id="equal"),
        pytest.param(4, 2, (4.0, 4.0 * 2**0.5, 8.0), id="not one"),
    ],
)
def test_ratio_spans_no_to_perfect_scaling(reference_threads, threads, expected):
    reference = dataclasses.replace(DENSE, threads=reference_threads)  # 200 ms there, 50 ms here
    target = a_target(session=Session(intra_op_threads=threads))
    assert ratio(reference, 50.0, target) == pytest.approx(expected)


def test_combine_adds_classes_and_holds_the_extremes_of_their_references():
    ratios = {"dense": [Range(4, 8, 16)], "depthwise": [Range(10, 20, 40), Range(2, 5, 8)]}
    low, value, high = combine(10.0, {"dense": 0.75, "depthwise": 0.25}, ratios)
    assert low == pytest.approx(10 * (0.75 * 4 + 0.25 * 2) / 2)
    assert value == pytest.approx(10 * (0.75 * 8 + 0.25 * 10))  # sqrt(20 × 5) = 10
    assert high == pytest.approx(10 * (0.75 * 16 + 0.25 * 40) * 2)


def test_an_estimate_is_the_model_and_names_its_sources(here):
    here(2.0, dense=0.5, depthwise=0.25, other=0.15, gemm=0.1)  # other and gemm go to dense
    figure = estimated(a_target(DENSE, DEPTHWISE))
    assert figure.provenance == "estimated"
    # dense 200 / 50, depthwise 120 / 10; four threads to one: 1 to 4, best guess 2
    assert figure.value == pytest.approx(2 * (0.75 * 4 + 0.25 * 12) * 2)
    assert figure.low == pytest.approx(2 * (0.75 * 4 + 0.25 * 12) / 2)
    assert figure.high == pytest.approx(2 * (0.75 * 4 + 0.25 * 12) * 4 * 2)
    assert figure.why == (
        f"this machine is {HERE.architecture}, the target {ELSEWHERE}; 2.00 ms on one thread here × "
        "(75 % dense × 8 from resnet18 (threads: 4, https://example.org/dense.md) + "
        "25 % depthwise × 24 from mobilenet_v2 (threads: 4, https://example.org/depthwise.md)); "
        "interval: threads, references, and 2.0 both ways for the model"
    )


def test_only_p50_is_estimated(here):
    here(2.0, dense=1.0)
    figures, subject = a_model()
    (after,) = with_estimates([figures], [subject], Site(a_target(DENSE), Local()))
    assert after.latency_p50_ms.value == pytest.approx(16.0)
    assert dataclasses.replace(after, latency_p50_ms=figures.latency_p50_ms) == figures


def test_several_references_of_one_class_are_all_used_and_named(here):
    here(10.0, dense=1.0)
    other = dataclasses.replace(DENSE, latency_ms=800, source="https://example.org/second.md")
    figure = estimated(a_target(DENSE, other))
    assert (figure.low, figure.value, figure.high) == pytest.approx((40 / 2, 160, 640 * 2))
    assert DENSE.source in figure.why
    assert other.source in figure.why


def test_a_class_that_takes_no_time_has_its_reference_not_timed(here):
    asked = here(2.0, dense=1.0)
    assert estimated(a_target(DENSE, DEPTHWISE)).value == pytest.approx(16.0)
    assert asked == ["resnet18"]


def test_without_a_dense_reference_the_one_there_is_stands_in(here):
    here(2.0, depthwise=0.8, dense=0.2)
    assert estimated(a_target(DEPTHWISE)).value == pytest.approx(2 * 12 * 2)


def test_where_the_target_is_this_machine_nothing_is_touched(monkeypatch):
    monkeypatch.setattr(estimate, "_estimate", lambda *_: pytest.fail("estimated"))
    figures, subject = a_model()
    measured = dataclasses.replace(figures, latency_p50_ms=Figure(1.0, "measured"))
    mine = a_target(DENSE, hardware=Hardware(architecture=HERE.architecture))  # type: ignore[arg-type]
    assert with_estimates([measured], [subject], Site(mine, Local())) == [measured]


def test_figures_and_subjects_must_match(here):
    here(2.0, dense=1.0)
    figures, subject = a_model()
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        with_estimates([figures, figures], [subject], Site(a_target(DENSE), Local()))


INT8 = dataclasses.replace(DENSE, precision="int8")
OPENVINO = Provider(name="OpenVINOExecutionProvider")


@pytest.mark.parametrize(
    ("target", "local_ms", "shares", "reason"),
    [
        pytest.param(
            a_target(),
            2.0,
            {"dense": 1.0},
            "no published fp32 reference to estimate from; target board has none at all",
            id="no reference",
        ),
        pytest.param(
            a_target(INT8),
            2.0,
            {"dense": 1.0},
            "no published fp32 reference to estimate from; target board has int8",
            id="none of this precision",
        ),
        pytest.param(
            a_target(DENSE, provider=OPENVINO),
            2.0,
            {"dense": 1.0},
            "estimates are made for CPUExecutionProvider only, not for OpenVINOExecutionProvider",
            id="another provider",
        ),
        pytest.param(
            a_target(DENSE, DEPTHWISE),
            2.0,
            {"dense": 0.79, "gemm": 0.21},
            "it spends 21 % of its time here in gemm kernels, for which there is no reference of this precision",
            id="too much in a class without reference",
        ),
        pytest.param(
            a_target(DENSE),
            2.0,
            {"dense": 0.78, "gemm": 0.11, "depthwise": 0.11},
            "it spends 11 % of its time here in gemm and 11 % of its time here in depthwise kernels, "
            "for which there is no reference of this precision",
            id="too much in two such classes together",
        ),
        pytest.param(
            a_target(DENSE),
            2.0,
            {"dense": 0.49, "other": 0.51},
            "it spends 51 % of its time here in other kernels, for which there is no reference of this precision",
            id="too much in no class",
        ),
        pytest.param(
            a_target(DENSE),
            0.49,
            {"dense": 1.0},
            "it is too small for its references to speak of, its time 0.490 ms here, the reference's 50.0 ms",
            id="too small",
        ),
    ],
)
def test_refused_with_the_reason(here, target, local_ms, shares, reason):
    here(local_ms, **shares)
    assert estimated(target) == Figure(why=f"{target.differences(HERE)[0]}; {reason}")


@pytest.mark.parametrize(
    ("local_ms", "shares"),
    [
        pytest.param(2.0, {"dense": 0.8, "gemm": 0.2}, id="classes without reference"),
        pytest.param(2.0, {"dense": 0.5, "other": 0.5}, id="no class"),
        pytest.param(0.5, {"dense": 1.0}, id="small"),
    ],
)
def test_at_the_limit_it_is_still_estimated(here, local_ms, shares):
    here(local_ms, **shares)
    assert estimated(a_target(DENSE)).value == pytest.approx(local_ms * 4 * 2)


def test_a_reference_that_cannot_be_made_here_is_a_reason(here, monkeypatch, tmp_path):
    make = reference_ms
    here(2.0, dense=1.0)
    monkeypatch.setattr(estimate, "reference_ms", make)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def broken(*_: object) -> Path:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(estimate, "_export", broken)
    figure = estimated(a_target(DENSE))
    assert (figure.value, figure.provenance) == (None, "unknown")
    assert figure.why.endswith("reference resnet18 cannot be timed here: no such operator")
    assert not list(tmp_path.rglob("*.json"))


def test_a_model_that_cannot_be_run_is_an_error_not_an_unknown(tmp_path):
    with pytest.raises(InputError, match="no such model file"):
        estimated(a_target(DENSE), file=str(tmp_path / "missing.onnx"))


# --- kernel classes, as ONNX Runtime's profile shows them


def saved(path: Path, nodes: list[onnx.NodeProto], inputs: list[int], **weights: np.ndarray) -> Path:
    """A model from `x` to `y` whose nodes have no names."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def conv(path: Path, channels: int, weights: list[int], group: int = 1) -> Path:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group, pads=[1, 1, 1, 1])
    return saved(path, [node], [1, channels, 16, 16], w=np.full(weights, 0.1))


def kinds(path: Path, graph_level: str = "all") -> set[str]:
    shares = profile_shares(path, estimate.this_machine(a_target(session=Session(graph_level=graph_level))))  # type: ignore[arg-type]
    assert sum(shares.values()) == pytest.approx(1.0)
    return {kind for kind, share in shares.items() if share > 0}


LEVELS = pytest.mark.parametrize("level", ["disable", "basic", "extended", "all"])
CONVOLUTIONS = pytest.mark.parametrize(
    ("channels", "weights", "group", "kind"),
    [
        pytest.param(32, [32, 32, 3, 3], 1, "dense", id="dense"),
        pytest.param(1, [32, 1, 3, 3], 1, "dense", id="dense on grey images"),
        pytest.param(32, [32, 16, 3, 3], 2, "dense", id="two groups"),
        pytest.param(32, [32, 1, 3, 3], 32, "depthwise", id="depthwise"),
        pytest.param(16, [32, 1, 3, 3], 16, "depthwise", id="depthwise, two outputs a channel"),
    ],
)


@LEVELS
@CONVOLUTIONS
def test_convolutions_are_told_apart(tmp_path, level, channels, weights, group, kind):
    assert kinds(conv(tmp_path / "m.onnx", channels, weights, group), level) - {"other"} == {kind}


@LEVELS
@CONVOLUTIONS
def test_int8_convolutions_are_told_apart(tmp_path, level, channels, weights, group, kind):
    fp32 = conv(tmp_path / "fp32.onnx", channels, weights, group)
    images: Any = np.random.default_rng(0).standard_normal((1, channels, 16, 16)).astype(np.float32)
    quantize(fp32, tmp_path / "int8.onnx", Quantization(), images)
    assert kinds(tmp_path / "int8.onnx", level) - {"other"} == {kind}


def test_matrix_products_and_recurrent_cells_are_gemm(tmp_path):
    gemm = saved(tmp_path / "gemm.onnx", [helper.make_node("Gemm", ["x", "w"], ["y"])], [1, 64], w=np.ones((64, 64)))
    assert kinds(gemm) == {"gemm"}
    matmul = saved(tmp_path / "mm.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [8, 64], w=np.ones((64, 64)))
    assert kinds(matmul) == {"gemm"}
    cell = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)
    lstm = saved(tmp_path / "lstm.onnx", [cell], [4, 1, 8], w=np.ones((1, 32, 8)), r=np.ones((1, 32, 8)))
    assert kinds(lstm) == {"gemm"}


def test_the_rest_is_other(tmp_path):
    path = saved(tmp_path / "m.onnx", [helper.make_node("Softmax", ["x"], ["y"])], [1, 4096])
    assert kinds(path) == {"other"}


def test_the_share_of_a_class_is_its_part_of_the_time(tmp_path):
    """A large dense convolution, then a Softmax of eight numbers: nearly all the time is dense."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Softmax", ["p"], ["y"], axis=1),
    ]
    path = saved(tmp_path / "m.onnx", nodes, [1, 32, 64, 64], w=np.full((64, 32, 5, 5), 0.1))
    shares = profile_shares(path, estimate.this_machine(a_target()))
    assert set(shares) == {"dense", "other"}
    assert shares["dense"] > 0.8


def event(name: str, dur: int, cat: str = "Node") -> dict[str, Any]:
    return {"cat": cat, "name": name, "dur": dur, "args": {}}


def test_shares_leave_out_the_slowest_quarter_and_what_is_no_kernel():
    events = [event("a_kernel_time", dur) for dur in (900, 2, 2, 2)]
    events += [event("b_kernel_time", dur) for dur in (4, 5, 99, 6)]
    events += [event("c_kernel_time", 1), event("a_fence_before", 500), event("model_run", 5_000, "Session")]
    # with half a microsecond for what is cut off: a 2.5, b 5.5, c (of no known class) 1.5; together 9.5
    assert shares_of(events, {"a": "dense", "b": "gemm"}) == pytest.approx(
        {"dense": 2.5 / 9.5, "gemm": 5.5 / 9.5, "other": 1.5 / 9.5}
    )


# --- the reference networks, timed here once


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The networks really timed, each in 12.5 ms; the cache lies in the test's folder."""
    networks: list[str] = []

    def export(reference: Reference, here: Site, folder: Path) -> Path:
        networks.append(reference.network)
        return folder / "reference.onnx"

    monkeypatch.setattr(estimate, "_export", export)
    monkeypatch.setattr(estimate, "_local_p50_ms", lambda file, here, effort: 12.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return networks


def test_a_reference_is_timed_once(timed, tmp_path, capsys):
    here = estimate.this_machine(a_target(DENSE))
    assert [reference_ms(DENSE, here) for _ in range(3)] == [12.5] * 3
    assert timed == ["resnet18"]
    assert capsys.readouterr().err.count("timing resnet18 fp32 here, once") == 1
    (kept,) = (tmp_path / "cache" / "edgekd" / "references").iterdir()
    assert json.loads(kept.read_text()) == {
        "schema_version": 1,
        "network": "resnet18",
        "input_size": 224,
        "precision": "fp32",
        "opset": 20,
        "graph_level": "all",
        "onnxruntime": onnxruntime.__version__,
        "cpu": HERE.model,
        "p50_ms": 12.5,
    }


def test_what_is_published_and_threads_of_the_target_do_not_matter_to_the_time_here(timed):
    reference_ms(DENSE, estimate.this_machine(a_target()))
    published = dataclasses.replace(DENSE, latency_ms=7, threads=2, ort_version="1.0", kernel_class="gemm", note="n")
    several = a_target(session=Session(intra_op_threads=4), quantization=Quantization(per_channel=False))
    reference_ms(published, estimate.this_machine(several))
    assert timed == ["resnet18"]


@pytest.mark.parametrize(
    ("reference", "values"),
    [
        pytest.param(dataclasses.replace(INT8, network="resnet50"), {}, id="network"),
        pytest.param(dataclasses.replace(INT8, input_size=96), {}, id="input size"),
        pytest.param(DENSE, {}, id="precision"),
        pytest.param(INT8, {"quantization": Quantization(per_channel=False)}, id="quantization scheme"),
        pytest.param(INT8, {"session": Session(graph_level="basic")}, id="graph level"),
    ],
)
def test_another_reference_is_timed_by_itself(timed, reference, values):
    reference_ms(INT8, estimate.this_machine(a_target()))
    reference_ms(reference, estimate.this_machine(a_target(**values)))
    assert timed == ["resnet18", reference.network]


@pytest.mark.parametrize("changed", ["onnxruntime", "cpu"])
def test_another_runtime_or_cpu_times_again(timed, monkeypatch, place, changed):
    here = estimate.this_machine(a_target())
    reference_ms(DENSE, here)
    if changed == "cpu":
        here = place(here.target, dataclasses.replace(HERE, model="another CPU"))
    else:
        monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    reference_ms(DENSE, here)
    assert timed == ["resnet18", "resnet18"]


def test_the_cache_is_in_the_home_folder_by_default(timed, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    reference_ms(DENSE, estimate.this_machine(a_target()))
    assert len(list((tmp_path / "home" / ".cache" / "edgekd" / "references").iterdir())) == 1


def test_a_cache_that_cannot_be_written_only_costs_time(timed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    here = estimate.this_machine(a_target())
    assert [reference_ms(DENSE, here), reference_ms(DENSE, here)] == [12.5, 12.5]
    assert timed == ["resnet18", "resnet18"]


def test_a_damaged_cache_file_is_named(timed, tmp_path):
    here = estimate.this_machine(a_target())
    reference_ms(DENSE, here)
    (kept,) = (tmp_path / "cache" / "edgekd" / "references").iterdir()
    kept.write_text("{")
    with pytest.raises(InputError, match=f"{kept.name}: not valid JSON"):
        reference_ms(DENSE, here)


# --- timing


def test_time_here_is_taken_on_one_thread_and_unpinned():
    quantization = Quantization(activation="int8", per_channel=False)
    session = Session(intra_op_threads=4, inter_op_threads=2, affinity=(0, 1), graph_level="extended")
    here = estimate.this_machine(a_target(session=session, quantization=quantization))
    plan = make_plan(here, mode="latency")
    assert here.measurable
    assert (plan.intra_op_threads, plan.inter_op_threads, plan.affinity) == (1, 1, ())
    assert (plan.graph_level, here.target.quantization) == ("extended", quantization)


def test_the_least_disturbed_process_counts(monkeypatch):
    def record(*latency: float) -> Record:
        return Record(mode="latency", load_s=0, fingerprint={}, memory={}, latency_s=latency)

    taken = [record(0.004, 0.004, 0.009), record(0.001, 0.003, 0.008)]
    monkeypatch.setattr(estimate, "measure_latency", lambda *_, **bounds: [taken])
    assert estimate._local_p50_ms(Path("x.onnx"), Site(a_target(), Local()), Effort()) == pytest.approx(3.0)


def test_the_whole_way_with_real_workers(tmp_path, monkeypatch):
    """A dense model against another as its reference: real timing, real profile, and a cache."""
    small = conv(tmp_path / "small.onnx", 32, [32, 32, 3, 3])
    large = conv(tmp_path / "large.onnx", 32, [128, 32, 3, 3])
    quick = Effort(processes=2, warmup_s=0.0, min_calls=5, max_calls=5, max_s=0.0)
    monkeypatch.setattr(estimate, "SUBJECT_EFFORT", quick)
    monkeypatch.setattr(estimate, "REFERENCE_EFFORT", quick)
    monkeypatch.setattr(estimate, "_export", lambda *_: large)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    figure = estimated(a_target(DENSE), file=str(small))
    assert figure.provenance == "estimated"
    (kept,) = (tmp_path / "edgekd" / "references").iterdir()
    slower = DENSE.latency_ms / json.loads(kept.read_text())["p50_ms"]
    assert figure.low is not None and figure.value is not None and figure.high is not None
    assert figure.value == pytest.approx(4 * figure.low)
    assert figure.high == pytest.approx(4 * figure.value)
    assert f"{units.milliseconds(figure.value / (2 * slower))} on one thread here" in figure.why


@pytest.mark.slow
def test_a_real_reference_is_exported_and_quantised(tmp_path):
    reference = dataclasses.replace(INT8, network="squeezenet1_1", input_size=64)
    before = torch.get_rng_state()
    file = estimate._export(reference, estimate.this_machine(load_target("cpu-arm")), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # a run's random numbers do not depend on this cache
    model = onnx.load(file)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 64]
    assert kinds(file) == {"dense", "other"}


def test_a_tiny_network_is_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measure_latency", lambda *_, **__: pytest.fail("timed"))
    model, subject = a_model()
    (figures,) = with_estimates([model], [dataclasses.replace(subject, macs=300_000)], Site(a_target(DENSE), Local()))
    assert figures.latency_p50_ms.value is None
    assert "too small for its references to speak of, 300 k multiply-accumulates" in figures.latency_p50_ms.why
