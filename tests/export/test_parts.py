"""A model of two files: what it computes, in NumPy as in torch, and that both files count."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgekd.bench.measure import weights_problem
from edgekd.bench.records import Plan, Record
from edgekd.bench.worker import WorkerError, measure, opened
from edgekd.card import Card, Student, Teacher
from edgekd.devices.orders import order_of
from edgekd.errors import ConfigError, InputError, ModelError
from edgekd.export.onnx import cpu_logits, export, parity, refuse_free_shapes
from edgekd.export.parts import parts_of
from edgekd.export.precisions import make_variant
from edgekd.export.variants import precision_of
from edgekd.external import decoder_of, file_digest, model_bytes, model_files
from edgekd.nets.generation import generate
from edgekd.nets.translation import Seq2Seq, Seq2SeqShape
from edgekd.recipe import Recipe
from edgekd.target import load_target
from edgekd.tasks.translation import END, TRANSLATION, TranslationData

VOCABULARY = 40


def card_of(**data: Any) -> Card:
    values: dict[str, Any] = {"source_language": "en", "target_language": "de", "vocabulary": VOCABULARY,
                              "max_length": 10, "timed_length": 5, "tokenizer": "{}"} | data  # fmt: skip
    nets: dict[str, Any] = {"teacher": Teacher(family="seq2seq"), "student": Student(family="seq2seq")}
    return Card(title="t", task="translation", data=TranslationData(**values), recipe=Recipe(epochs=1), budgets={},
                name="t", file="t.toml", **nets)  # fmt: skip


def net_of() -> Seq2Seq:
    torch.manual_seed(1)
    shape = Seq2SeqShape(width=16, encoder_layers=1, decoder_layers=2, heads=2, feed=16)
    net = Seq2Seq(shape, VOCABULARY, VOCABULARY).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported network, in fp32 and in int8 beside it."""
    file = tmp_path_factory.mktemp("model") / "net.onnx"
    target = load_target("cpu-x86")
    export(net_of(), card_of(), target, file, {})
    make_variant(file, "int8", target, None, file.with_name("int8.onnx"))
    return file


def sources() -> np.ndarray:
    rng, rows = np.random.default_rng(0), np.zeros((6, 7), np.int32)
    for row, length in enumerate((1, 2, 3, 4, 6, 6)):
        rows[row, : length + 1] = [*rng.integers(4, VOCABULARY, length), END]
    return rows


def in_numpy(file: Path, beam: int, penalty: float = 1.0) -> np.ndarray:
    session = opened(str(file))
    session.settings.update(beam=beam, length_penalty=penalty)
    return np.concatenate([session.run(None, {"ids": call})[0] for call in TRANSLATION.calls(sources())])


def test_logits_after_each_token_are_torchs(model: Path) -> None:
    found = cpu_logits(model, TRANSLATION, sources())
    with torch.no_grad():
        expected = net_of()(torch.from_numpy(sources())).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert parity(net_of(), card_of(), sources(), found).examples == len(sources()) < len(found)


@pytest.mark.parametrize(("beam", "penalty"), [(1, 1.0), (3, 1.0), (3, 0.0), (8, 0.6)])
def test_translations_in_numpy_are_torchs(model: Path, beam: int, penalty: float) -> None:
    expected = generate(net_of(), sources(), 10, beam, penalty)
    assert (in_numpy(model, beam, penalty) == expected).all()
    assert len({tuple(row) for row in expected.tolist()}) > 1  # a network that always says the same proves nothing


def test_both_files_are_int8_and_nearly_agree(model: Path) -> None:
    int8 = model.with_name("int8.onnx")
    assert precision_of(int8) == precision_of(decoder_of(int8)) == "int8"
    assert model_bytes(int8) < 0.7 * model_bytes(model)
    one, other = (cpu_logits(file, TRANSLATION, sources()) for file in (model, int8))
    assert np.abs(one - other).max() < 0.2 * np.abs(one).max()


def test_both_files_count_in_size_and_digest(model: Path, tmp_path: Path) -> None:
    assert model_files(model) == [model, decoder_of(model)]
    assert model_bytes(model) == model.stat().st_size + decoder_of(model).stat().st_size
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    with pytest.raises(InputError, match=r"copy\.onnx: keeps weights in 'copy\.decoder\.onnx', which cannot be read"):
        model_bytes(copy)
    decoder_of(copy).write_bytes(decoder_of(model).read_bytes())
    assert file_digest(copy) == file_digest(model)
    decoder_of(copy).write_bytes(decoder_of(model.with_name("int8.onnx")).read_bytes())
    assert file_digest(copy) != file_digest(model)


def test_an_encoder_names_its_decoder(model: Path, tmp_path: Path) -> None:
    for file in (model, model.with_name("int8.onnx")):
        known = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        assert known["decoder_sha256"] == hashlib.sha256(decoder_of(file).read_bytes()).hexdigest()
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    decoder_of(copy).write_bytes(decoder_of(model.with_name("int8.onnx")).read_bytes())
    told = r"copy\.decoder\.onnx: is not the decoder with which copy\.onnx was written \(SHA-256 \w{12}…, the encoder"
    for ask in (model_files, model_bytes):
        with pytest.raises(InputError, match=told):
            ask(copy)
    assert "is not the decoder with which" in str(weights_problem(copy, load_target("cpu-x86")))
    decoder_of(copy).write_bytes(decoder_of(model).read_bytes())
    assert model_files(copy) == [copy, decoder_of(copy)]


def test_an_encoder_of_an_earlier_version_names_no_decoder(model: Path, tmp_path: Path) -> None:
    old = onnx.load(model)
    kept = {entry.key: entry.value for entry in old.metadata_props if entry.key != "decoder_sha256"}
    onnx.helper.set_model_props(old, kept)
    onnx.save(old, tmp_path / "old.onnx")
    decoder_of(tmp_path / "old.onnx").write_bytes(decoder_of(model).read_bytes())
    assert len(model_files(tmp_path / "old.onnx")) == 2


def test_both_files_are_sent_to_a_device(model: Path, tmp_path: Path) -> None:
    order = order_of(Plan(mode="load", provider="CPUExecutionProvider"), model, 1.0, lambda: tmp_path)
    assert set(order.files) == {"worker", "model/net.onnx", "model/net.decoder.onnx"}


def plan_of(mode: Any, **values: Any) -> dict[str, Any]:
    quick: dict[str, Any] = {"warmup_s": 0.0, "min_calls": 4, "max_calls": 4, "max_s": 0.0, "sequence_length": 5}
    return Plan(mode=mode, provider="CPUExecutionProvider", **quick | {"padding": 0} | values).as_json()


def test_generating_is_timed_at_the_given_length(model: Path) -> None:
    ticks = iter(range(10_000))
    record = Record.from_json(measure(plan_of("generate"), str(model), lambda: float(next(ticks))))
    assert len(record.latency_s) == len(record.first_token_s) == 4 and record.tokens == 5
    assert all(first < whole for first, whole in zip(record.first_token_s, record.latency_s, strict=True))
    assert record.fingerprint["generation"] == {"beam": 1, "length_penalty": 1.0}
    assert record.load_s == 1.0 and record.fingerprint["shapes"] == {"ids": [1, 5]}


def test_a_profile_has_the_kernels_of_both_files(model: Path) -> None:
    record = Record.from_json(measure(plan_of("profile"), str(model)))
    names = [kernel["node"] for kernel in record.kernels]
    assert any(name.startswith("decoder/") for name in names) and not all(name.startswith("decoder/") for name in names)


def test_a_pair_and_several_sessions_generate_too(model: Path) -> None:
    pair = Record.from_json(measure(plan_of("pair", baseline=str(model.with_name("int8.onnx"))), str(model)))
    assert len(pair.latency_s) == len((pair.baseline or {})["latency_s"]) >= 3
    many = Record.from_json(measure(plan_of("throughput", batch_size=3, sessions=2), str(model)))
    assert many.calls >= 8 and many.batch_size == 3


def test_predicting_writes_padded_ids(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", sources())
    files = {"inputs": str(tmp_path / "in.npy"), "outputs": str(tmp_path / "out.npy")}
    measure(plan_of("predict", **files), str(model))
    assert (np.load(tmp_path / "out.npy") == generate(net_of(), sources(), 10)).all()


@pytest.mark.parametrize("beam", [1, 3])
def test_a_decoder_that_gives_nan_is_told(model: Path, tmp_path: Path, beam: int) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes())
    decoder = onnx.load(decoder_of(model))
    for tensor in decoder.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))
    onnx.save(decoder, decoder_of(broken))
    np.save(tmp_path / "in.npy", sources())
    files = {"inputs": str(tmp_path / "in.npy"), "outputs": str(tmp_path / "out.npy")}
    for mode, given in (("predict", files), ("generate", {})):
        with pytest.raises(WorkerError, match=r"^gives NaN or infinite outputs$"):
            measure(plan_of(mode, **given), str(broken))
    session = opened(str(broken))
    session.settings["beam"] = beam
    with pytest.raises(WorkerError, match=r"^gives NaN or infinite outputs$"):
        session.run(None, {"ids": sources()[:1]})
    with pytest.raises(ModelError, match=r"broken\.onnx: gives NaN or infinite outputs$"):
        cpu_logits(broken, TRANSLATION, sources())


def test_what_cannot_generate_is_refused(model: Path) -> None:
    with pytest.raises(WorkerError, match="its inputs cannot be bound"):
        measure(plan_of("latency", binding="io"), str(model))
    with pytest.raises(WorkerError, match="mode generate needs a model that generates"):
        measure(plan_of("generate", sequence_length=None, shapes={"ids": (1, 5)}), str(model))
    with pytest.raises(WorkerError, match="its metadata have no settings of generation"):
        opened(str(decoder_of(model)))
    problem = weights_problem(model, load_target("wasm"))
    assert "generates token by token, which target wasm cannot" in str(problem)
    with pytest.raises(ConfigError, match=r"t\.toml: task translation: its model generates token by token"):
        refuse_free_shapes(card_of(), load_target("wasm"))
    with pytest.raises(ModelError, match="a Linear has no encoder and decoder"):
        parts_of(torch.nn.Linear(1, 1), card_of().data, model)


def test_the_metadata_say_how_to_generate(model: Path) -> None:
    known = onnxruntime.InferenceSession(model).get_modelmeta().custom_metadata_map
    assert json.loads(known["generation"]) == {"start": 2, "end": 3, "padding": 0, "max_length": 10, "beam": 1,
                                               "length_penalty": 1.0}  # fmt: skip
    assert known["tokenizer"] == "{}" and known["languages"] == "en to de" and known["task"] == "translation"


def test_values_of_the_card_are_checked() -> None:
    make: Callable[..., Card] = card_of
    with pytest.raises(ValueError, match="timed_length: must be at most max_length, 10, got 11"):
        make(timed_length=11)
    with pytest.raises(ValueError, match="target_language: must differ from source_language"):
        make(target_language="en")
