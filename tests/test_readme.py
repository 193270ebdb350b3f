"""What the README shows is true."""

import dataclasses
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from typer.main import get_command

import edgekd
from edgekd.augmentation import Augment
from edgekd.card import Teacher
from edgekd.cli.helping import EXAMPLES, GROUPS
from edgekd.cli.main import app
from edgekd.devices.environments import environment_folder
from edgekd.recipe import Feature, Recipe
from edgekd.spec import bundled_names
from edgekd.target import load_target
from edgekd.tasks.known import load_card

ROOT = Path(edgekd.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_card_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "your-own.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "parts.toml"
    path.write_text(example, encoding="utf-8")
    card = load_card(str(path))
    assert card.data.classes == ("bolt", "nut", "washer")
    assert card.budget("cpu-arm").limit("size_kb") == 1500


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 150
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).is_file(), f"{page.name}: {link}"


def test_every_command_has_an_example_and_a_group() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]  # typer's group
    assert commands - {"baseline"} <= EXAMPLES.keys()
    assert {name for names in GROUPS.values() for name in names} >= commands
    assert all(f"`edgekd {name}" in README for name in commands)


def test_the_deployed_file_is_called_as_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = untrained_digits(tmp_path / "model.onnx")
    Image.new("L", (8, 8), 100).save(tmp_path / "example.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(deploying_block("Python"), "deploying.md", "exec"), {})
    assert capsys.readouterr().out.strip() in classes


def test_node_calls_the_deployed_file_as_the_page_shows(tmp_path: Path) -> None:
    modules, node = environment_folder("wasm") / "node_modules", shutil.which("node")
    if node is None or not modules.is_dir():
        pytest.skip("no onnxruntime-web here: edgekd doctor --install wasm")
    untrained_digits(tmp_path / "model.onnx")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "main.mjs").write_text(deploying_block("JavaScript") + "console.log(best);\n", encoding="utf-8")
    told = subprocess.run([node, "main.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.zeros((1, 8, 8, 1), np.uint8)})  # the image that the block makes
    assert int(told) == logits[0].argmax()


def untrained_digits(path: Path) -> tuple[str, ...]:
    """Write the teacher of `digits`, untrained, and return its classes."""
    from edgekd.export.onnx import export
    from edgekd.nets.families import make

    card = load_card("digits")
    net = make(card, card.teacher, card.teacher.shape, "teacher.shape")
    export(net, card, load_target("cpu-x86"), path, {"trained": "no"})
    return tuple(card.data.classes)


def deploying_block(heading: str) -> str:
    """The only block of code in this section of docs/deploying.md."""
    text = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    return str(block)


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
