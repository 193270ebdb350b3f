"""The task translation: token ids become texts, and texts get the scores of sacreBLEU."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import sacrebleu
import tokenizers
from onnx import helper

from edgekd.bench.statistics import bootstrap
from edgekd.errors import InputError, ModelError
from edgekd.tasks.translation import PADDING, TRANSLATION, ids_of, texts_of, tokenizer_from

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "ein", "hund", "▁", "sieht"]


def tokenizer_of(words: list[str]) -> str:
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return str(made.to_str())


def sentences(count: int, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Texts (n,) that differ from their references (n, 2) in a share of the words."""
    rng = np.random.default_rng(seed)
    words = np.array("der die hund katze haus sieht nimmt rot klein gross auf dem einen".split())
    references = [rng.choice(words, rng.integers(5, 12)) for _ in range(count)]
    texts = [np.where(rng.random(len(row)) < noise, rng.choice(words, len(row)), row) for row in references]
    return np.array([" ".join(row) for row in texts]), np.array([["source", " ".join(row)] for row in references])


def test_scores_are_sacrebleus_on_texts() -> None:
    texts, targets = sentences(50, 0, 0.2)
    found = TRANSLATION.score(texts, targets)
    assert found["bleu"] == sacrebleu.corpus_bleu(texts.tolist(), [targets[:, 1].tolist()]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(texts.tolist(), [targets[:, 1].tolist()]).score
    assert TRANSLATION.score(targets[:, 1], targets)["bleu"] == pytest.approx(100)


def test_resampling_the_figures_of_each_sentence_is_nearly_the_paired_bootstrap_of_bleu() -> None:
    """Koehn (2004) computes BLEU anew for each sample; this is done here, with sacreBLEU, for 200 samples."""
    (one, targets), (other, _) = sentences(120, 1, 0.15), sentences(120, 1, 0.2)
    difference = TRANSLATION.each(one, targets) - TRANSLATION.each(other, targets)
    mine = bootstrap(difference)
    rng, gains = np.random.default_rng(0), []
    bleu = sacrebleu.BLEU()  # TRANSLATION.score also computes chrF, which takes several times as long
    for _ in range(200):
        drawn = rng.integers(120, size=120)
        references = [targets[drawn, 1].tolist()]
        scores = [bleu.corpus_score(texts[drawn].tolist(), references).score for texts in (one, other)]
        gains.append(scores[0] - scores[1])
    low, high = np.quantile(gains, [0.025, 0.975])
    whole = TRANSLATION.score(one, targets)["bleu"] - TRANSLATION.score(other, targets)["bleu"]
    assert mine.value == pytest.approx(whole, abs=0.3)
    assert high - low == pytest.approx(mine.high - mine.low, rel=0.2)


def test_ids_become_texts_up_to_the_end_token() -> None:
    made = tokenizer_from(tokenizer_of(WORDS), "here")
    ids = np.array([[4, 5, 3, 7, 0], [2, 4, 0, 0, 0], [3, 0, 0, 0, 0]])
    assert texts_of(ids, made).tolist() == ["ein hund", "ein", ""]


def test_outputs_that_are_no_ids_are_refused() -> None:
    assert ids_of(np.array([[4.0, 3.0]], np.float32)).tolist() == [[4, 3]]
    with pytest.raises(ModelError, match="the outputs are no token ids"):
        ids_of(np.array([[0.5, 3.0]], np.float32))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "the tokenizers library cannot read it"),
        (tokenizer_of(["ein", "<pad>", "<unk>", "<s>", "</s>"]), "the id of <pad> is 1; it should be 0"),
    ],
)
def test_tokenizers_that_cannot_be_used_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tokenizer_from(text, "t.json")


def test_a_model_without_a_tokenizer_gives_no_texts(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.INT32, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value],
                              [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, ["batch", 2])])  # fmt: skip
    model = helper.make_model(graph)
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(InputError, match=r"plain\.onnx: its metadata hold no tokenizer"):
        TRANSLATION.read_from(np.array([[4.0, 3.0]], np.float32), tmp_path / "plain.onnx")
    model.metadata_props.add(key="tokenizer", value=tokenizer_of(WORDS))
    onnx.save(model, tmp_path / "plain.onnx")
    assert TRANSLATION.read_from(np.array([[5.0, 3.0]], np.float32), tmp_path / "plain.onnx").tolist() == ["hund"]


def test_targets_are_pairs_of_texts() -> None:
    _, targets = sentences(3, 0, 0.0)
    assert TRANSLATION.targets_problem(targets) == ""
    assert "should be a sentence and its translation" in TRANSLATION.targets_problem(np.arange(3))
    assert TRANSLATION.fit_problem(np.zeros((3, 2)), targets, "m.onnx") == "m.onnx gives no text"


def test_answers_are_equal_exactly_if_the_texts_are() -> None:
    assert TRANSLATION.answers is not None and TRANSLATION.same is not None
    one, other = np.array(["a b", "c", "a b"]), np.array(["a b", "d", "a b"])
    numbers = TRANSLATION.answers(one)
    assert (numbers == TRANSLATION.answers(other)).tolist() == [True, False, True]
    assert TRANSLATION.same(one, other) == pytest.approx(2 / 3)


def test_details_hold_samples_and_the_signature() -> None:
    texts, targets = sentences(40, 2, 0.3)
    details = TRANSLATION.details(texts, targets)
    assert len(details["translations"]) == 12
    assert details["translations"][0] == ["source", targets[0, 1], texts[0]]
    assert "tok:13a" in details["signature"]


def test_each_call_leaves_the_padding_out() -> None:
    rows = TRANSLATION.calls(np.array([[4, 5, 3, PADDING], [3, PADDING, PADDING, PADDING]], np.int32))
    assert [row.tolist() for row in rows] == [[[4, 5, 3]], [[3]]]
