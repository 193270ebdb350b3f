"""Dropout: how many elements are dropped, that their mean stays, and that a seed determines them."""

import pytest
import torch
from torch import nn

from edgekd.nets.dropout import Dropout


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_is_dropped_and_the_mean_stays(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(1_001, 203, dtype=dtype)
    found = Dropout(share)(x)
    assert found.dtype == dtype
    # Five standard deviations of a binomial share.
    assert abs(float((found == 0).float().mean()) - share) < 5 * (share * (1 - share) / x.numel()) ** 0.5
    kept = found[found != 0]
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert float(kept[0]) == pytest.approx(1 / (1 - share), rel=1e-4 if dtype == torch.float32 else 1e-2)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(400_000)) == 0).float() - 0.5
    for distance in range(1, 9):  # of those up to 3, some share their 64 bits
        assert abs(float((dropped[:-distance] * dropped[distance:]).mean())) < 5 * 0.25 / dropped.numel() ** 0.5


def test_a_seed_determines_the_elements() -> None:
    x, found = torch.randn(7, 5), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(Dropout(0.5)(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_gradient_passes_only_what_is_kept() -> None:
    x = torch.randn(64, 9, requires_grad=True)
    found = Dropout(0.25)(x)
    found.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), found.detach())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing_is_as_in_torch(share: float) -> None:
    x = torch.randn(3, 4)
    assert torch.equal(Dropout(share)(x), nn.Dropout(share)(x))


def test_nothing_is_dropped_in_evaluation_and_of_nothing() -> None:
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.5)(x[:0]).shape == (0, 4)
