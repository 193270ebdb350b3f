"""TOML files into typed objects: every mistake is one line with file, key, value, rule and the nearest name."""

import os
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"zz = {'[' * 2000}{']' * 2000}", "holds tables or arrays inside one another more than 32 deep"),
        (f"zz = {'[' * 50}{']' * 50}", "zz.0.0: holds tables or arrays inside one another more than 32 deep"),
        (f"zz = {'{a=' * 2000}1{'}' * 2000}", "holds tables or arrays inside one another more than 32 deep"),
        (f"{'a.' * 100}a = 1", "a.a.a: holds tables or arrays inside one another more than 32 deep"),
        (f"[{'a.' * 900_000}a]", "holds tables or arrays inside one another more than 32 deep"),
        (f"zz = {'9' * 5000}", "holds an integer of more than 64 bits"),
        (f"zz = 0x{'f' * 5000}", "zz: holds an integer of more than 64 bits"),
        ("a = [{zz = 9223372036854775808}]", "a.0.zz: holds an integer of more than 64 bits"),
        ("zz = -9223372036854775809", "zz: holds an integer of more than 64 bits"),
        (f"{'k' * 100_000} = 1", f"{'k' * 39}…: a key has at most 200 characters, this one has 100,000"),
        (f"a = 1\n[{'k' * 100_000}]\nx = 1\n[{'k' * 100_000}]", "not valid TOML: Cannot declare ('kkk"),
        (f"zz = {'k' * 100_000}", "not valid TOML: Invalid value (at line 1, column 6)"),
        ('zz = "a\\u0000b"', "zz: should hold no NUL character"),
        ("a = 1\n" * 1_000_000, "has 6,000,000 bytes; a TOML file of edgekd has at most 4,000,000"),
    ],
)
def test_what_no_card_or_target_needs_is_told_on_one_short_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "card.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_toml(path)
    told = str(caught.value).removeprefix(f"{path}: ")
    assert told.startswith(said)
    assert len(told) < 240
    assert "\n" not in told


def test_what_a_build_is_given_may_be_deep_or_long() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert problem(GOOD | {"names": deep}).startswith("holds tables or arrays inside one another")
    assert len(problem(GOOD | {"k" * 100_000: 1})) < 200
    assert len(problem(GOOD | {"named": {"k" * 100_000: {"size": 0}}})) < 200


def test_names_and_texts_that_are_not_utf_8(tmp_path: Path) -> None:
    name = str(tmp_path / os.fsdecode(b"a\xff.toml"))
    Path(name).write_text("")
    with pytest.raises(ConfigError, match=r"^card '.+: its path is not UTF-8 text; rename it$"):
        locate("models", name)
    assert problem(GOOD | {os.fsdecode(b"a\xff"): 1}) == "holds text that is not UTF-8; write it in UTF-8"
    (tmp_path / "ü.toml").write_text("")
    assert locate("models", str(tmp_path / "ü.toml")) == tmp_path / "ü.toml"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text('b = "ü"\n', encoding="utf-8-sig")
    assert read_toml(tmp_path / "card.toml") == {"b": "ü"}


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "card.toml"
    path.mkdir()
    with pytest.raises(ConfigError, match=rf"^{path}: cannot be read: Is a directory$"):
        read_toml(path)
    with pytest.raises(ConfigError, match=rf"^card '{path}': is no file; give a TOML file or a bundled name$"):
        locate("models", str(path))

    def refuse(*args: object, **named: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    path.rmdir()
    path.write_text("")
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=rf"^{path}: cannot be read: Permission denied$"):
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
