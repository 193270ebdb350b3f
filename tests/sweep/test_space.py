"""What a sweep tries, and the recipes it makes of it."""

import pytest

from edgekd.card import Recipe
from edgekd.errors import ConfigError
from edgekd.recipe import Stage
from edgekd.sweep.space import Axis, grid, make_space, recipe_at

PLAIN = Recipe(epochs=8, seed=5)
WEIGHTED = Recipe(epochs=8, losses={"ce": 1.0, "dkd": 2.0, "mutual": 0.5})


def test_without_options_temperature_and_alpha_have_their_ranges() -> None:
    assert make_space(PLAIN, "", "", "", 1) == (
        Axis(name="temperature", low=0.1, high=20.0, log=True),
        Axis(name="alpha", low=0.0, high=1.0),
    )


def test_losses_have_the_weights_of_their_soft_terms_tried() -> None:
    space = make_space(WEIGHTED, "2:4", "", "0.5,2", 1)
    assert [axis.name for axis in space] == ["temperature", "weight dkd", "weight mutual"]
    assert space[0] == Axis(name="temperature", low=2.0, high=4.0, log=True)
    assert space[1] == Axis(name="weight dkd", low=0.5, high=2.0, log=True, values=(0.5, 2.0))


def test_seeds_go_upwards_from_the_recipes() -> None:
    assert make_space(PLAIN, "4", "0.9", "", 3)[-1] == Axis(name="seed", low=5.0, high=7.0, values=(5.0, 6.0, 7.0))


def test_the_grid_is_every_combination_of_what_is_listed() -> None:
    assert grid(make_space(PLAIN, "1,4", "", "", 2)) == [
        {"temperature": 1.0, "seed": 5.0},
        {"temperature": 1.0, "seed": 6.0},
        {"temperature": 4.0, "seed": 5.0},
        {"temperature": 4.0, "seed": 6.0},
    ]
    assert grid(make_space(PLAIN, "", "", "", 1)) == [{}]


def test_a_value_given_twice_is_tried_once() -> None:
    assert make_space(PLAIN, "4,1,4", "", "", 1)[0].values == (4.0, 1.0)


def test_a_recipe_takes_the_points_values_and_keeps_the_rest() -> None:
    made = recipe_at(PLAIN, {"temperature": 0.5, "alpha": 0.25, "seed": 7.0}, 3)
    assert (made.temperature, made.alpha, made.seed, made.epochs) == (0.5, 0.25, 7, 3)
    assert made.weights() == {"kd": 0.25, "ce": 0.75}
    made = recipe_at(WEIGHTED, {"temperature": 2.0, "weight dkd": 0.3}, 8)
    assert made.losses == {"ce": 1.0, "dkd": 0.3, "mutual": 0.5}
    assert made.learning_rate == WEIGHTED.learning_rate


def learning(low: float, high: float) -> Recipe:
    return Recipe(epochs=8, temperature_schedule="learned", temperature_min=low, temperature_max=high)


@pytest.mark.parametrize(
    ("bounds", "tried"), [((1.0, 20.0), (1.0, 20.0)), ((0.01, 5.0), (0.1, 5.0)), ((30.0, 40.0), (30.0, 40.0))]
)
def test_a_learned_temperature_is_tried_within_its_bounds(
    bounds: tuple[float, float], tried: tuple[float, float]
) -> None:
    axis = make_space(learning(*bounds), "", "", "", 1)[0]
    assert axis == Axis(name="temperature", low=tried[0], high=tried[1], log=True)


@pytest.mark.parametrize("text", ["0.1:20", "0.5,4", "2:30", "0.1:0.5"])
def test_temperatures_beyond_the_bounds_of_a_learned_one_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_space(learning(1.0, 20.0), text, "", "", 1)
    assert str(caught.value) == (
        f'--temperatures: got {text!r}; with temperature_schedule = "learned" it should lie from temperature_min to '
        "temperature_max, 1:20"
    )
    assert make_space(PLAIN, text, "", "", 1)[0].name == "temperature"  # a fixed one has no bounds


def test_temperatures_and_values_up_to_the_bounds_are_taken() -> None:
    assert make_space(learning(1.0, 20.0), "20,1", "", "", 1)[0].values == (20.0, 1.0)
    assert make_space(learning(1.0, 20.0), "1:20", "", "", 1)[0].high == 20.0


COLD = Recipe(epochs=8, temperature=3.0, losses={"ce": 1.0, "mse": 1.0, "mutual": 1.0})


def test_a_temperature_that_no_term_uses_is_not_tried() -> None:
    assert [axis.name for axis in make_space(COLD, "", "", "", 1)] == ["weight mse", "weight mutual"]
    assert recipe_at(COLD, {"weight mse": 2.0}, 8).temperature == 3.0
    with pytest.raises(ConfigError) as caught:
        make_space(COLD, "1,4", "", "", 1)
    assert str(caught.value) == (
        "--temperatures: got '1,4'; no term of the card's recipe uses a temperature; leave it out"
    )
    half = (Stage(epochs=1, losses={"mse": 1.0}), Stage(epochs=2, losses={"dist": 1.0}))
    assert make_space(Recipe(epochs=3, stages=half), "", "", "", 1)[0].name == "temperature"


def test_where_nothing_is_left_to_try_seeds_may_be() -> None:
    hard = Recipe(epochs=3, stages=(Stage(epochs=3, losses={"ce": 1.0}),))
    with pytest.raises(ConfigError, match="no temperature and no weight to try; give --seeds, 2 or more"):
        make_space(hard, "", "", "", 1)
    assert [axis.name for axis in make_space(hard, "", "", "", 2)] == ["seed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("0:5", "", ""), "--temperatures: got '0:5'; it should be LOW:HIGH or A,B,… with a number above 0 each"),
        (("warm", "", ""), "--temperatures: got 'warm'; it should be LOW:HIGH or A,B,… with a number above 0 each"),
        (("1,nan", "", ""), "--temperatures: got '1,nan'; it should be LOW:HIGH or A,B,… with a number above 0 each"),
        (("20:0.1", "", ""), "--temperatures: got '20:0.1'; a range should rise, such as 0.1:20"),
        (("", "0.5,1.5", ""), "--alphas: got '0.5,1.5'; it should be LOW:HIGH or A,B,… with a number from 0 to 1 each"),
        (("", "", "1:2"), "the card's recipe has alpha and no losses; use --alphas in place of --weights"),
    ],
)
def test_what_cannot_be_tried_is_refused(options: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_space(PLAIN, *options, 1)
    assert str(caught.value) == message


def test_alpha_is_no_weight_of_losses() -> None:
    with pytest.raises(ConfigError, match="use --weights in place of --alphas"):
        make_space(WEIGHTED, "", "0.5", "", 1)


def test_stages_keep_their_weights() -> None:
    staged = Recipe(epochs=3, stages=(Stage(epochs=3, losses={"kd": 1.0}),))
    assert [axis.name for axis in make_space(staged, "", "", "", 1)] == ["temperature"]
    with pytest.raises(ConfigError, match="stages name their terms"):
        make_space(staged, "", "0.5", "", 1)
    assert recipe_at(staged, {"temperature": 2.0}, 3).stages == staged.stages
