"""The search space of a sweep: temperatures, weights of the terms, and seeds."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekd.errors import ConfigError, shown
from edgekd.recipe import TEMPERED, Recipe

__all__ = ["Axis", "grid", "make_space", "recipe_at"]

SOFT = ("kd", "soft_ce", "mse", "dkd", "dist", "mutual")
"""Terms in `losses` whose weights are varied; the weight of `ce` is fixed, because mainly their ratio matters."""

TEMPERATURES = (0.1, 20.0)
"""The default range of temperatures."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One dimension of the search space."""

    name: str
    """`temperature` (if a term uses it), `alpha`, `seed`, or `weight TERM`."""
    low: float
    high: float
    log: bool = False
    """Whether a range is sampled uniformly in its logarithm."""
    values: tuple[float, ...] = ()
    """Only these values are tried; if empty, the whole range."""


def make_space(recipe: Recipe, temperatures: str, alphas: str, weights: str, seeds: int) -> tuple[Axis, ...]:
    """Make the axes for a recipe: its temperature, its `alpha` or the weights of the soft terms in its `losses`, and
    seeds.

    Each text is a range `LOW:HIGH` or values `A,B,…`; an empty text means the default: 0.1:20 for the temperature
    (within the recipe's bounds, if it learns its temperature), 0:1 for `alpha` and 0.1:10 for weights. `seeds` is the
    number of seeds, counted up from the recipe's own. Terms of stages keep their weights, and the temperature is no
    axis if no term uses it. Raises ConfigError for a text of another form, values outside the recipe's limits,
    temperatures that no term uses, weights of the wrong kind for the recipe, and if there is nothing to try.
    """
    axes = _temperature(recipe, temperatures)
    soft = [name for name in recipe.losses if name in SOFT]
    if recipe.stages:
        _refuse(alphas or weights, "the card's stages name their terms, whose weights are not tried")
    elif recipe.losses:
        _refuse(alphas, "the card's recipe gives weights in losses; use --weights in place of --alphas")
        axes += [_axis(f"weight {name}", "--weights", weights or "0.1:10", _positive, log=True) for name in soft]
    else:
        _refuse(weights, "the card's recipe has alpha and no losses; use --alphas in place of --weights")
        axes.append(_axis("alpha", "--alphas", alphas or "0:1", _fraction))
    if seeds > 1:
        listed = tuple(float(recipe.seed + number) for number in range(seeds))
        axes.append(Axis(name="seed", low=listed[0], high=listed[-1], values=listed))
    if not axes:
        raise ConfigError("the card's recipe has no temperature and no weight to try; give --seeds, 2 or more")
    return tuple(axes)


def grid(space: Sequence[Axis]) -> list[dict[str, float]]:
    """Return every combination of the listed values; one empty combination if all axes are ranges."""
    listed = [axis for axis in space if axis.values]
    return [
        dict(zip([axis.name for axis in listed], values, strict=True))
        for values in itertools.product(*(axis.values for axis in listed))
    ]


def recipe_at(recipe: Recipe, point: dict[str, float], epochs: int) -> Recipe:
    """Return the recipe with the values of the point and that many epochs."""
    weights = {name: point.get(f"weight {name}", weight) for name, weight in recipe.losses.items()}
    return dataclasses.replace(
        recipe,
        epochs=epochs,
        attempts=1,
        temperature=point.get("temperature", recipe.temperature),
        alpha=point.get("alpha", recipe.alpha),
        losses=weights,
        seed=int(point.get("seed", recipe.seed)),
    )


def _temperature(recipe: Recipe, text: str) -> list[Axis]:
    """Return the temperature axis within the recipe's bounds, if there are any; no axis if no term uses the
    temperature.
    """
    terms = {str(name) for stage in recipe.stages for name in stage.losses} or {str(name) for name in recipe.losses}
    # A recipe without stages and losses has alpha, and therefore uses kd.
    if (recipe.stages or recipe.losses) and not terms & TEMPERED:
        _refuse(
            text, f"--temperatures: got {shown(text)}; no term of the card's recipe uses a temperature; leave it out"
        )
        return []
    axis = Axis(name="temperature", low=TEMPERATURES[0], high=TEMPERATURES[1], log=True)
    if text:
        axis = _axis("temperature", "--temperatures", text, _positive, log=True)
    if recipe.temperature_schedule not in ("learned", "adversarial"):
        return [axis]
    low, high = max(axis.low, recipe.temperature_min), min(axis.high, recipe.temperature_max)
    if text and (low, high) != (axis.low, axis.high):
        raise ConfigError(
            f'--temperatures: got {shown(text)}; with temperature_schedule = "{recipe.temperature_schedule}" it should '
            f"lie from temperature_min to temperature_max, {recipe.temperature_min:g}:{recipe.temperature_max:g}"
        )
    if not low < high:  # the bounds lie outside the default range
        low, high = recipe.temperature_min, recipe.temperature_max
    return [dataclasses.replace(axis, low=low, high=high)]


def _positive(value: float) -> str:
    return "" if 0 < value < math.inf else "a number above 0"


def _fraction(value: float) -> str:
    return "" if 0 <= value <= 1 else "a number from 0 to 1"


def _axis(name: str, option: str, text: str, rule: Callable[[float], str], log: bool = False) -> Axis:
    """Parse a text with a range or with values into an axis."""
    ends = text.split(":")
    values = [_number(part, option, text, rule) for part in (ends if len(ends) == 2 else text.split(","))]
    if len(ends) == 2:
        if not values[0] < values[1]:
            raise ConfigError(f"{option}: got {shown(text)}; a range should rise, such as {values[1]:g}:{values[0]:g}")
        return Axis(name=name, low=values[0], high=values[1], log=log)
    return Axis(name=name, low=min(values), high=max(values), log=log, values=tuple(dict.fromkeys(values)))


def _number(part: str, option: str, text: str, rule: Callable[[float], str]) -> float:
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if wanted := rule(value):
        raise ConfigError(f"{option}: got {shown(text)}; it should be LOW:HIGH or A,B,… with {wanted} each")
    return value


def _refuse(given: str, why: str) -> None:
    if given:
        raise ConfigError(why)
