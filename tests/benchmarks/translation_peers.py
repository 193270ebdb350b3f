"""The student of a translation run in ONNX Runtime, beside the same weights in CTranslate2 int8, greedy and by beam.

    pip install ctranslate2
    python tests/benchmarks/translation_peers.py RUN OUT.json [--sentences 1000] [--beams 1,4]
        [--precisions fp32,int8]

RUN is a finished run of a translation card. All systems translate the same test sentences one by one, with one thread,
in one process; they take turns at every sentence, so that other work on the machine meets all alike. Times are wall
time and CPU time of the process, without the tokenizer.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from ctranslate2.specs import TransformerSpec, common_spec, transformer_spec
from torch import Tensor

from edgekd.bench.worker import opened
from edgekd.candidate import Shape
from edgekd.external import model_bytes
from edgekd.files import read_json, write_json
from edgekd.nets.translation import Seq2Seq, Seq2SeqShape
from edgekd.nets.weights import read_state
from edgekd.tasks.translation import END, PADDING, TRANSLATION, texts_of, tokenizer_from

State = Mapping[str, Tensor]
Translate = Callable[[list[int]], list[int]]


def converted(state: State, shape: Seq2SeqShape, longest: int, tokens: list[str], folder: Path) -> None:
    """Write the weights of a `seq2seq` as a model of CTranslate2 in int8 to `folder`."""
    spec = TransformerSpec.from_config((shape.encoder_layers, shape.decoder_layers), shape.heads, pre_norm=True)
    net = Seq2Seq(shape, state["table.weight"].shape[0], state["table.weight"].shape[0])
    places = net.positions(torch.arange(longest + 2)).numpy().astype(np.float32)
    table = state["table.weight"].numpy()
    for part in (spec.encoder, spec.decoder):
        embeddings = part.embeddings[0] if isinstance(part.embeddings, list) else part.embeddings
        embeddings.weight, part.scale_embeddings = table, True
        part.position_encodings.encodings = places
    spec.decoder.projection.weight = table
    for name, part in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        _norm(part.layer_norm, state, f"{name}_norm")
        for number, layer in enumerate(part.layer):
            _layer(layer, state, f"{name}.{number}")
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
    spec.config.add_source_eos = False  # the ids end with it
    spec.config.decoder_start_token = "<s>"
    spec.validate()
    spec.optimize(quantization="int8")
    folder.mkdir()
    spec.save(str(folder))


def _norm(spec: common_spec.LayerNormSpec, state: State, name: str) -> None:
    spec.gamma, spec.beta = state[f"{name}.weight"].numpy(), state[f"{name}.bias"].numpy()


def _linear(spec: common_spec.LinearSpec, state: State, *names: str) -> None:
    spec.weight = np.concatenate([state[f"{name}.weight"].numpy() for name in names])
    spec.bias = np.concatenate([state[f"{name}.bias"].numpy() for name in names])


def _layer(
    layer: transformer_spec.TransformerEncoderLayerSpec | transformer_spec.TransformerDecoderLayerSpec,
    state: State,
    name: str,
) -> None:
    own = layer.self_attention
    _norm(own.layer_norm, state, f"{name}.norm")
    _linear(own.linear[0], state, f"{name}.own.query", f"{name}.own.pair")
    _linear(own.linear[1], state, f"{name}.own.join")
    if isinstance(layer, transformer_spec.TransformerDecoderLayerSpec):
        cross = layer.attention
        _norm(cross.layer_norm, state, f"{name}.cross_norm")
        _linear(cross.linear[0], state, f"{name}.cross.query")
        _linear(cross.linear[1], state, f"{name}.cross.pair")
        _linear(cross.linear[2], state, f"{name}.cross.join")
    _norm(layer.ffn.layer_norm, state, f"{name}.feed.0")
    _linear(layer.ffn.linear_0, state, f"{name}.feed.1")
    _linear(layer.ffn.linear_1, state, f"{name}.feed.4")


def in_onnx(file: Path, beam: int) -> Translate:
    """A model of edgekd."""
    session = opened(str(file))
    session.settings["beam"] = beam

    def translate(ids: list[int]) -> list[int]:
        found: list[int] = session.run(None, {"ids": np.array([ids], np.int32)})[0][0].tolist()
        return found

    return translate


def in_ctranslate2(folder: Path, tokens: list[str], beam: int, longest: int) -> Translate:
    """A model of CTranslate2, on the CPU in int8."""
    translator = ctranslate2.Translator(str(folder), device="cpu", compute_type="int8", intra_threads=1)
    numbers = {token: number for number, token in enumerate(tokens)}

    def translate(ids: list[int]) -> list[int]:
        (found,) = translator.translate_batch(
            [[tokens[one] for one in ids]], beam_size=beam, max_decoding_length=longest, length_penalty=1.0
        )
        return [numbers[token] for token in found.hypotheses[0]]

    return translate


def measured(systems: Mapping[str, Translate], sources: list[list[int]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers (n lists of ids) of each system, and wall and CPU seconds (n) of each sentence."""
    answers: dict[str, list[list[int]]] = {name: [] for name in systems}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for translate in systems.values():
        for ids in sources[:20]:
            translate(ids)
    for number, ids in enumerate(sources):
        names = list(systems)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin, cpu = time.perf_counter(), time.process_time()
            answers[name].append(systems[name](ids))
            times[name].append((time.perf_counter() - begin, time.process_time() - cpu))
    return answers, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--beams", default="1,4")
    parser.add_argument("--precisions", default="fp32,int8")
    asked = parser.parse_args()
    run: Path = asked.run
    result, data = read_json(run / "result.json"), read_json(run / "run.json")["card"]["data"]
    tokenizer = tokenizer_from((run / "tokenizer.json").read_text(encoding="utf-8"), "the run")
    tokens = [str(tokenizer.id_to_token(number)) for number in range(tokenizer.get_vocab_size())]
    inputs, labels = (np.load(run / "data" / f"test{end}.npy")[: asked.sentences] for end in ("", ".labels"))
    sources = [row[row != 0].tolist() for row in inputs]
    shape: Shape = result["shape"]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "ct2")
        state = read_state(run / "student" / "student.safetensors")
        converted(state, Seq2SeqShape(**shape), data["max_length"], tokens, model)
        systems: dict[str, Translate] = {}
        files = {name: run / "exported" / f"student-{name}.onnx" for name in asked.precisions.split(",")}
        for beam in map(int, asked.beams.split(",")):
            for name, file in files.items():
                systems[f"edgekd {name}, beam {beam}"] = in_onnx(file, beam)
            systems[f"CTranslate2 int8, beam {beam}"] = in_ctranslate2(model, tokens, beam, data["max_length"])
        sizes = {f"edgekd {name}": model_bytes(file) for name, file in files.items()}
        sizes["CTranslate2 int8"] = sum(file.stat().st_size for file in model.iterdir())
        answers, times = measured(systems, sources)
    found = {}
    for name, rows in answers.items():
        wide = max(map(len, rows))
        ids = np.array([[*row, *[0] * (wide - len(row))] for row in rows], np.int64)
        wall, cpu = 1000 * np.array(times[name]).T
        found[name] = TRANSLATION.score(texts_of(ids, tokenizer), labels) | {
            "wall_ms_p50": float(np.median(wall)),
            "wall_ms_p10": float(np.quantile(wall, 0.1)),
            "cpu_ms_mean": float(cpu.mean()),
            "cpu_ms_p50": float(np.median(cpu)),
            "tokens_mean": float((~np.isin(ids, (PADDING, END))).sum(axis=1).mean()),
        }
    write_json(
        asked.out,
        {
            "run": result["card"] if isinstance(result.get("card"), str) else run.name,
            "sentences": len(sources),
            "ctranslate2": ctranslate2.__version__,
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "size_bytes": sizes,
            "systems": found,
        },
    )
    for name, row in found.items():
        print(name, {key: round(value, 2) for key, value in row.items()}, flush=True)


if __name__ == "__main__":
    main()
