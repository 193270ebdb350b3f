"""TOML files into typed objects: every mistake is one line with file, key, value, rule and the nearest name."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgekd.errors import ConfigError
from edgekd.spec import build, bundled_names, locate, read_toml

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
CHECKOUT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Wheel:
    """A part."""

    size: Annotated[int, Field(ge=1)]
    colour: Literal["red", "blue"] = "red"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Cart:
    """A thing of parts."""

    title: str
    load: float = 1.0
    front: Wheel
    back: Wheel | None = None
    spare: tuple[Wheel, ...] = ()
    named: dict[str, Wheel] = field(default_factory=dict)
    names: tuple[str, ...] = ()


GOOD = {"title": "a cart", "front": {"size": 3}}


def problem(data: Mapping[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(Cart, dict(data), "cart.toml")
    text = str(caught.value)
    assert text.startswith("cart.toml: ")
    assert "\n" not in text
    return text.removeprefix("cart.toml: ")


def test_good_data_becomes_typed() -> None:
    cart = build(
        Cart, GOOD | {"load": 2, "names": ["a", "b"], "spare": [{"size": 1}], "named": {"x": {"size": 2}}}, "f"
    )
    assert cart == Cart(
        title="a cart",
        load=2.0,
        front=Wheel(size=3),
        names=("a", "b"),
        spare=(Wheel(size=1),),
        named={"x": Wheel(size=2)},
    )
    assert isinstance(cart.load, float)


def test_an_unknown_key() -> None:
    assert problem(GOOD | {"lode": 3}) == (
        "lode: unknown key; did you mean 'load'? Known: back, front, load, named, names, spare, title."
    )


@pytest.mark.parametrize(
    ("extra", "where"),
    [
        ({"front": {"size": 3, "color": "red"}}, "front.color"),
        ({"back": {"size": 3, "color": "red"}}, "back.color"),
        ({"spare": [{"size": 3}, {"size": 3, "color": "red"}]}, "spare.1.color"),
        ({"named": {"left": {"size": 3, "color": "red"}}}, "named.left.color"),
    ],
)
def test_an_unknown_key_inside_names_its_path_and_the_keys_there(extra: dict[str, object], where: str) -> None:
    assert problem(GOOD | extra) == f"{where}: unknown key; did you mean 'colour'? Known: colour, size."


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"title": 3}, "title: got 3; it should be a valid string"),
        ({"load": "much"}, 'load: got "much"; it should be a valid number'),
        ({"load": True}, "load: got true; it should be a valid number"),
        ({"front": {"size": 2.5}}, "front.size: got 2.5; it should be a valid integer"),
        ({"front": {"size": "3"}}, 'front.size: got "3"; it should be a valid integer'),
        ({"front": {"size": 0}}, "front.size: got 0; it should be greater than or equal to 1"),
        ({"front": {"size": 1, "colour": "green"}}, "front.colour: got \"green\"; it should be 'red' or 'blue'"),
        ({"names": "a"}, 'names: got "a"; it should be a valid array'),
        ({"names": ["a", 4]}, "names.1: got 4; it should be a valid string"),
        ({"load": float("nan")}, "load: got NaN; it should be a finite number"),
    ],
)
def test_a_wrong_value(extra: dict[str, object], said: str) -> None:
    assert problem(GOOD | extra) == said


def test_a_missing_key() -> None:
    assert problem({"front": {"size": 3}}) == "title: is missing; add it"
    assert problem({"title": "a", "front": {}}) == "front.size: is missing; add it"


def test_several_mistakes_are_counted_and_an_unknown_key_comes_first() -> None:
    assert problem({"titel": "a", "front": {"size": 0}}).startswith("titel: unknown key; did you mean 'title'?")
    assert problem({"titel": "a", "front": {"size": 0}}).endswith(" (and 2 more)")


def test_a_long_value_is_cut() -> None:
    said = problem(GOOD | {"load": "x" * 200})
    assert said == f'load: got "{"x" * 58}…; it should be a valid number'


def test_a_table_where_a_value_belongs() -> None:
    assert problem(GOOD | {"front": 3}).startswith("front: got 3; it ")


# --- files ---


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text('title = "a"\nsize = \nmore = 1\n')
    with pytest.raises(ConfigError, match=rf"^{path}: not valid TOML: .+line 2"):
        read_toml(path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(b'title = "\xff"\n')
    with pytest.raises(ConfigError, match=rf"^{path}: not UTF-8 text: "):
        read_toml(path)


def test_a_good_file(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text('[a]\nb = "ü"\n', encoding="utf-8")
    assert read_toml(tmp_path / "card.toml") == {"a": {"b": "ü"}}


@pytest.mark.parametrize("kind", ["targets", "models"])
def test_bundled_names_are_the_files_of_the_checkout(kind: str) -> None:
    names = bundled_names(kind)
    assert names == sorted(path.stem for path in (CHECKOUT / kind).glob("*.toml"))
    assert len(names) >= 5
    for name in names:
        assert locate(kind, name).read_bytes() == (CHECKOUT / kind / f"{name}.toml").read_bytes()


def test_a_path_wins_over_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert locate("models", "digits.toml") == Path("digits.toml")
    assert locate("models", f"{tmp_path}/digits.toml") == tmp_path / "digits.toml"
    assert locate("models", "digits") != Path("digits.toml")


def test_an_unknown_name_or_path() -> None:
    with pytest.raises(ConfigError) as caught:
        locate("models", "digit")
    assert str(caught.value) == (
        f"unknown card 'digit'; did you mean 'digits'? Known: {', '.join(bundled_names('models'))}."
    )
    with pytest.raises(ConfigError, match=r"^unknown target 'cpu-arn'; did you mean 'cpu-arm'"):
        locate("targets", "cpu-arn")
    for name in ("gone.toml", "some/where"):
        with pytest.raises(ConfigError) as caught:
            locate("targets", name)
        assert str(caught.value) == f"target {name!r}: no such file; give a TOML file or a bundled name"
