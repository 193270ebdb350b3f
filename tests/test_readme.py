"""What the README shows is true."""

import dataclasses
import re
import tomllib
from pathlib import Path

import edgekd
from edgekd.card import Teacher
from edgekd.recipe import Augment, Feature, Recipe
from edgekd.spec import bundled_names
from edgekd.tasks.known import load_card

ROOT = Path(edgekd.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_card_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "parts.toml"
    path.write_text(example, encoding="utf-8")
    card = load_card(str(path))
    assert card.data.classes == ("bolt", "nut", "washer")
    assert card.budget("cpu-arm").limit("size_kb") == 1500


def test_every_bundled_target_is_named() -> None:
    assert all(f"`{name}`" in README for name in bundled_names("targets"))


def test_ci_runs_the_commands_the_readme_shows() -> None:
    assert 'pip install -e ".[train,cpu]" && edgekd distill --target cpu-arm' in README
    assert 'pip install -e ".[dev]" && pytest' in README


def test_every_key_and_its_default_is_documented() -> None:
    text = (ROOT / "docs" / "distilling.md").read_text(encoding="utf-8").partition("## Every key and its default")[2]
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    told = tomllib.loads(block)
    told["recipe"]["features"] = told["recipe"]["features"][0]
    for cls, given, required in (
        (Augment, told["augment"], {}),
        (Recipe, {key: value for key, value in told["recipe"].items() if key != "features"}, {"epochs": 1}),
        (Feature, told["recipe"]["features"], {"term": "hint"}),
        (Teacher, told["teacher"], {"family": "mlp"}),
    ):
        defaults = dataclasses.asdict(cls(**required))
        skipped = required.keys() | {"features", "stages"} | {key for key, value in defaults.items() if value is None}
        assert given == {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in defaults.items()
            if key not in skipped
        }
