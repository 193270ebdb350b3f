"""What stops a training: terms that are not finite, weights that are not, and a loss that grows tenfold."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.distill.watch import PATIENCE, Watch, check_epoch
from edgekd.errors import BudgetError

CHECKPOINT = Path("scratch/checkpoint.pt")
ADVICE = "; lower the learning rate (now 0.05), raise warmup_epochs or set clip_norm, and train anew"


def watch(epoch: int = 0) -> Watch:
    return Watch("student", CHECKPOINT, 0.05, epoch)


def terms(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def test_means_of_steps_and_of_parts_of_a_step() -> None:
    found = watch()
    found.add(0, terms(ce=1.0, kd=4.0), 0.25)
    found.add(0, terms(ce=3.0, kd=8.0), 0.75)
    found.add(1, terms(ce=5.0, kd=0.0), 1.0)
    assert found.means(2) == {"ce": (0.25 + 2.25 + 5) / 2, "kd": (1 + 6 + 0) / 2}


def test_means_of_more_steps_than_are_kept() -> None:
    found = watch()
    for step in range(3 * PATIENCE + 7):
        found.add(step, terms(ce=float(step)), 1.0)
    assert found.means(3 * PATIENCE + 7) == {"ce": pytest.approx((3 * PATIENCE + 6) / 2)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_term_that_is_not_finite_is_named(value: float) -> None:
    found = watch(epoch=3)
    for step in range(5):
        found.add(step, terms(ce=1.0, kd=value if step >= 2 else 1.0, mse=value if step >= 3 else 1.0), 1.0)
    with pytest.raises(BudgetError) as caught:
        found.means(5)
    assert str(caught.value) == (
        f"student: the loss term kd is {value} at epoch 4, step 3{ADVICE}; the last good checkpoint is "
        "scratch/checkpoint.pt, after epoch 3"
    )


def test_muon_has_two_rates_to_lower() -> None:
    found = Watch("student", CHECKPOINT, 0.05, 0, muon=True)
    found.add(0, terms(ce=math.nan), 1.0)
    with pytest.raises(BudgetError, match=r"step 1; lower learning_rate and matrix_learning_rate, raise warmup_epochs"):
        found.means(1)


def test_the_first_epoch_has_no_checkpoint_to_name() -> None:
    found = watch()
    found.add(0, terms(ce=math.nan), 1.0)
    with pytest.raises(BudgetError) as caught:
        found.means(1)
    assert str(caught.value) == f"student: the loss term ce is nan at epoch 1, step 1{ADVICE}"


def test_it_does_not_wait_for_the_end_of_the_epoch() -> None:
    found = watch()
    for step in range(PATIENCE - 1):
        found.add(step, terms(ce=math.nan), 1.0)
    with pytest.raises(BudgetError, match="step 1;"):
        found.add(PATIENCE - 1, terms(ce=1.0), 1.0)


def entry(epoch: int, temperature: float = 4.0, **found: float) -> dict[str, Any]:
    loss = sum(found.values())
    return {"epoch": epoch, "loss": loss, "terms": found, "learning_rate": 0.05, "temperature": temperature}


def test_weights_that_are_not_finite() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_epoch("student", CHECKPOINT, net, [], entry(2, ce=1.0))
    with torch.no_grad():
        net.get_parameter("1.bias")[1] = math.inf
    with pytest.raises(BudgetError) as caught:
        check_epoch("student", CHECKPOINT, net, [], entry(2, ce=1.0))
    assert str(caught.value).startswith("student: the weights 1.bias are not finite after epoch 2; lower the ")
    assert str(caught.value).endswith("the last good checkpoint is scratch/checkpoint.pt, after epoch 1")


def test_a_loss_that_grows_tenfold() -> None:
    net, before = nn.Linear(1, 1), [entry(4, ce=1.0, kd=1.0), entry(5, ce=0.1, kd=0.1)]
    check_epoch("student", CHECKPOINT, net, before, entry(6, ce=10.0, kd=9.9))
    with pytest.raises(BudgetError) as caught:
        check_epoch("student", CHECKPOINT, net, before, entry(6, ce=9.0, kd=11.1))
    assert str(caught.value) == (
        "student: the loss was 2 in epoch 4 and is 20.1 in epoch 6: it diverges, most in kd" + ADVICE + "; "
        "the last good checkpoint is scratch/checkpoint.pt, after epoch 5"
    )


def test_a_temperature_that_rises_is_no_divergence() -> None:
    net, before = nn.Linear(1, 1), [entry(1, temperature=1.0, ce=1.0, soft_ce=1.0)]
    check_epoch("student", CHECKPOINT, net, before, entry(2, temperature=20.0, ce=1.0, soft_ce=400.0))
    with pytest.raises(BudgetError, match="the loss was 1 in epoch 1 and is 11 in epoch 2: it diverges, most in ce"):
        check_epoch("student", CHECKPOINT, net, before, entry(2, temperature=20.0, ce=11.0, soft_ce=400.0))


def test_a_loss_below_zero_has_no_tenfold() -> None:
    check_epoch("student", CHECKPOINT, nn.Linear(1, 1), [entry(1, vid=-0.1)], entry(2, vid=3.0))
    check_epoch("student", CHECKPOINT, nn.Linear(1, 1), [], entry(1, vid=3.0))


def test_a_training_in_bf16_is_advised_to_train_in_fp32() -> None:
    found = Watch("student", CHECKPOINT, 0.05, 0, bf16=True)
    found.add(0, terms(ce=math.nan), 1.0)
    with pytest.raises(BudgetError, match=r'nan at epoch 1, step 1; set precision = "fp32" \(now it is bf16\), lower'):
        found.means(1)
