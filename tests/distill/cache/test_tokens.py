"""The cache keeps the largest logits of each token: what is lost by that."""

import pytest
import torch

from edgekd.distill.cache.tokens import KEPT, packed, packed_shape, unpacked
from edgekd.distill.terms.losses import grouped, kd, standardized

INPUTS = torch.tensor([[[4, 7, 8, 3], [2, 5, 6, 0]], [[5, 3, 0, 0], [2, 0, 0, 0]]])
"""Two sentences with three and one tokens of translation; the longer one has four tokens itself."""


def test_few_classes_are_kept_whole() -> None:
    logits = 3 * torch.randn(4, KEPT + 1, generator=torch.Generator().manual_seed(0))
    entries = packed(logits, INPUTS, 5)
    assert entries.shape == (2, *packed_shape(5, KEPT + 1)) == (2, 5, 2 * KEPT + 1)
    found = unpacked(entries, INPUTS, KEPT + 1)
    torch.testing.assert_close(found.softmax(1), logits.softmax(1), atol=1e-6, rtol=1e-4)


def test_the_rest_has_the_right_probability_and_the_largest_are_exact() -> None:
    logits = 3 * torch.randn(4, 500, generator=torch.Generator().manual_seed(1))
    found, true = unpacked(packed(logits, INPUTS, 3), INPUTS, 500).softmax(1), logits.softmax(1)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    values, places = true.topk(KEPT, 1)
    torch.testing.assert_close(found.gather(1, places), values, atol=1e-6, rtol=1e-4)
    others = found.scatter(1, places, torch.full_like(values, torch.nan))
    assert all(row[row.isfinite()].std() < 1e-8 for row in others)


def test_the_loss_against_kept_logits_is_near_that_against_all_of_them() -> None:
    generator = torch.Generator().manual_seed(2)
    teacher = torch.randn(4, 500, generator=generator)
    teacher[torch.arange(4), torch.tensor([3, 10, 77, 400])] += 12  # as sure as a network that translates
    student = teacher + torch.randn(4, 500, generator=generator)
    kept = unpacked(packed(teacher, INPUTS, 3), INPUTS, 500)
    assert float(kd(student, kept, 1.0)) == pytest.approx(float(kd(student, teacher, 1.0)), rel=0.2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sure", [0, 12, 40])
def test_what_groups_of_tokens_need_is_kept(temperature: float, sure: float) -> None:
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(4, 500, generator=generator)
    teacher[torch.arange(4), torch.tensor([3, 10, 77, 400])] += sure
    student = teacher + torch.randn(4, 500, generator=generator)
    kept = unpacked(packed(teacher, INPUTS, 3), INPUTS, 500)
    (mine, theirs), (own, true) = grouped(student, kept, KEPT), grouped(student, teacher, KEPT)
    assert float(kd(mine, theirs, temperature)) == pytest.approx(float(kd(own, true, temperature)), rel=1e-4)
    found = kd(standardized(mine), standardized(theirs), temperature)
    assert float(found) == pytest.approx(float(kd(standardized(own), standardized(true), temperature)), rel=1e-3)
