"""Terms on features as a card names them: which formula, of what, for which shapes."""

from typing import Any

import pytest
import torch
from torch import Size, Tensor

from edgekd.distill.terms.contrast import Contrast
from edgekd.distill.terms.feature_losses import FeatureTerm, feature_term, teacher_name
from edgekd.distill.terms.features import Regressor, Vid, attention, hint, match, pooled, similarity, vid
from edgekd.distill.terms.layers import reduced
from edgekd.distill.terms.relations import rkd_angle, rkd_distance
from edgekd.errors import ConfigError
from edgekd.recipe import Feature

INDICES = torch.tensor([4, 17, 9])


def feature_of(term: str, **values: Any) -> Feature:
    given: dict[str, Any] = {"term": term, "teacher": "deep", "student": "flat", "negatives": 6, "embedding": 5}
    return Feature(**given | values)


def made(feature: Feature, mine: tuple[int, ...], theirs: tuple[int, ...], count: int = 20) -> FeatureTerm:
    """`theirs` is the shape of the teacher's whole layer."""
    torch.manual_seed(0)
    kept = reduced(teacher_name(feature), torch.zeros(1, *theirs)).shape[1:]
    shapes = {"logits": Size((10,)), feature.student: Size(mine)}
    return feature_term(feature, shapes, shapes | {teacher_name(feature): kept}, count, seed=3)


def value(term: FeatureTerm, feature: Feature, mine: Tensor, theirs: Tensor, step: int = 0) -> Tensor:
    """Of the student's features and the teacher's whole ones, which are reduced as its name says."""
    return term.loss(mine, reduced(teacher_name(feature), theirs), INDICES, step)


def maps(channels: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("match", "deep"),
        ("hint", "deep"),
        ("attention", "deep|attention"),
        ("similarity", "deep"),
        ("vid", "deep"),
        ("rkd", "deep|pooled"),
        ("crd", "deep|pooled"),
        ("adversarial", "deep|pooled"),
    ],
)
def test_what_is_kept_of_the_teacher(term: str, expected: str) -> None:
    assert teacher_name(feature_of(term)) == expected
    assert teacher_name(feature_of(term, teacher="")) == "logits"


@pytest.mark.parametrize("term", ["match", "attention", "similarity"])
def test_formulas_without_anything_to_learn(term: str) -> None:
    mine, theirs = maps(4, 6), maps(4, 6, seed=1)
    function = {"match": match, "attention": attention, "similarity": similarity}[term]
    found = made(feature_of(term), (4, 6, 6), (4, 6, 6))
    assert found.learned is None
    assert value(found, feature_of(term), mine, theirs).item() == pytest.approx(function(mine, theirs).item(), rel=1e-6)


def test_relations_with_their_weights() -> None:
    feature = feature_of("rkd", distance_weight=2.0, angle_weight=7.0)
    mine, theirs = maps(4, 6), maps(9, 2, seed=1)
    found = made(feature, (4, 6, 6), (9, 2, 2))
    a, b = pooled(mine), pooled(theirs)
    expected = 2 * rkd_distance(a, b) + 7 * rkd_angle(a, b)
    assert found.learned is None
    assert value(found, feature, mine, theirs).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_learned_map_from_student_to_teacher() -> None:
    mine, theirs = maps(4, 6), maps(9, 3, seed=1)
    for term, kind in (("hint", Regressor), ("vid", Vid)):
        found = made(feature_of(term), (4, 6, 6), (9, 3, 3))
        assert isinstance(found.learned, kind)
        expected = hint(found.learned, mine, theirs) if term == "hint" else vid(found.learned, mine, theirs)  # type: ignore[arg-type]
        assert value(found, feature_of(term), mine, theirs).item() == expected.item()


@pytest.mark.parametrize("term", ["match", "hint", "channel"])
def test_terms_at_weighted_places(term: str) -> None:
    """Maps of different sizes, but for `match`; places that all weigh the same are the whole map."""
    feature, theirs = feature_of(term, where="foreground"), maps(4 if term == "match" else 9, 6, seed=1)
    mine = maps(4, 6 if term == "match" else 12)
    found = made(feature, tuple(mine.shape[1:]), tuple(theirs.shape[1:]))
    assert found.among is not None
    weights = torch.zeros(3, 6, 6)
    weights[:, 2:4] = 0.5
    half = found.among(mine, theirs, weights)
    assert half.item() != pytest.approx(value(found, feature, mine, theirs).item(), rel=1e-3)
    whole = found.among(mine, theirs, torch.ones(3, 6, 6))
    assert whole.item() == pytest.approx(value(found, feature, mine, theirs).item(), rel=1e-5)


@pytest.mark.parametrize(("mine", "theirs"), [((8,), (8,)), ((7, 4), (7, 4))])
def test_only_maps_have_places(mine: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r'where = "foreground" is for maps \(channels, height, width\)') as caught:
        made(feature_of("hint", where="foreground"), mine, theirs)
    assert "\n" not in str(caught.value)


def test_contrast_has_the_cards_sizes_and_an_untouched_memory() -> None:
    feature = feature_of("crd", contrast_temperature=0.2)
    found = made(feature, (4, 6, 6), (9,))
    torch.manual_seed(0)
    fresh = Contrast(4, 9, embedding=5, count=20, negatives=6, temperature=0.2, seed=3)
    assert isinstance(found.learned, Contrast)
    begun = fresh.state_dict()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in found.learned.state_dict().items())
    mine, theirs = maps(4, 6), torch.randn(3, 9)
    assert value(found, feature, mine, theirs, step=2).item() == fresh(mine, theirs, INDICES, 2).item()
    assert not torch.equal(found.learned.banks, Contrast(4, 9, 5, 20, 6, 0.2, 3).banks)


def test_contrast_has_no_more_negatives_than_images() -> None:
    learned = made(feature_of("crd", negatives=1_024), (4, 6, 6), (9,), count=8).learned
    assert isinstance(learned, Contrast)
    assert learned.negatives == 7


@pytest.mark.parametrize(("channels", "parameters"), [(9, 0), (4, 4 * 9 + 9)])
def test_a_discriminator_and_a_map_where_sizes_differ(channels: int, parameters: int) -> None:
    feature = feature_of("adversarial", hidden=6)
    found = made(feature, (channels, 6, 6), (9, 2, 2))
    assert found.learned is not None
    judge = 9 * 6 + 6 + 6 + 1
    assert sum(p.numel() for p in found.learned.parameters()) == judge + parameters


def test_the_weight_is_the_students_alone() -> None:
    """The term times its weight: the discriminator's gradient is the same for any, the student's grows with it."""
    slopes = []
    for weight in (0.5, 2.0):
        feature = feature_of("adversarial", weight=weight)
        found = made(feature, (9, 2, 2), (9, 2, 2))
        assert found.learned is not None
        mine = maps(9, 2).requires_grad_()
        (weight * value(found, feature, mine, maps(9, 2, seed=1))).backward()
        assert mine.grad is not None
        slopes.append((mine.grad, [p.grad for p in found.learned.parameters()]))
    torch.testing.assert_close(4 * slopes[0][0], slopes[1][0])
    torch.testing.assert_close(slopes[0][1], slopes[1][1])
    assert slopes[0][0].abs().max() > 0


@pytest.mark.parametrize("term", ["match", "hint", "similarity", "vid", "rkd", "crd", "adversarial"])
def test_terms_of_logits_teach_the_student(term: str) -> None:
    feature = feature_of(term, teacher="", student="")
    torch.manual_seed(0)
    found = feature_term(feature, {"logits": Size((10,))}, {"logits": Size((10,))}, 20, seed=0)
    mine = torch.randn(3, 10, requires_grad=True)
    loss = found.loss(mine, torch.randn(3, 10), INDICES, 0)
    loss.backward()
    assert loss.shape == ()
    assert mine.grad is not None and mine.grad.abs().max() > 0
    if found.learned is not None:
        assert all(p.grad is not None for p in found.learned.parameters())


@pytest.mark.parametrize(
    ("term", "mine", "theirs", "rule"),
    [
        ("match", (4, 6, 6), (8, 6, 6), "must be equal; use hint"),
        ("hint", (4, 6, 6), (8,), "must be of one kind"),
        ("hint", (7, 4), (5, 4), "must have the same number of tokens"),
        ("vid", (4,), (8, 6, 6), "must be of one kind"),
        ("attention", (8,), (8, 6, 6), r"must be maps \(B, C, H, W\)"),
        ("rkd", (2, 3, 4, 5), (8,), r"should be \(B, C\), \(B, L, C\) or \(B, C, H, W\)"),
        ("crd", (2, 3, 4, 5), (8,), r"should be \(B, C\), \(B, L, C\) or \(B, C, H, W\)"),
        ("adversarial", (2, 3, 4, 5), (8,), r"should be \(B, C\), \(B, L, C\) or \(B, C, H, W\)"),
    ],
)
def test_shapes_that_do_not_suit(term: str, mine: tuple[int, ...], theirs: tuple[int, ...], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        made(feature_of(term), mine, theirs)
    kept = reduced(teacher_name(feature_of(term)), torch.zeros(1, *theirs)).shape[1:]
    text = str(caught.value)
    assert text.count(term) == 1 or term == "vid"
    assert text.startswith(
        f"recipe.features: {term} between the student's flat {mine} and the teacher's deep {tuple(kept)}: "
    )
    assert "\n" not in text


def test_attention_of_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attention between the student's logits \(10,\) and the teacher's logits"):
        feature_term(
            feature_of("attention", teacher="", student=""), {"logits": Size((10,))}, {"logits": Size((10,))}, 9, 0
        )
