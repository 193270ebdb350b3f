"""`--set`: single values of a card or a target are replaced, and checked like those in the file."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgekd.cli.main import app
from edgekd.errors import ConfigError
from edgekd.settings import for_target, parse_settings
from edgekd.target import load_target
from edgekd.tasks.known import load_card


def test_values_of_every_type_are_replaced() -> None:
    options = [
        "recipe.epochs=3",
        "recipe.temperature = 2.5",
        "student.knobs.channels=[[8, 16]]",
        "augment.flip=true",
        'student.family="mlp"',
        "teacher.shape={hidden=[8]}",
        "budget.size_kb=50",
        "budget.cpu-arm.latency_p50_ms=1",
    ]
    card, plain = load_card("digits", parse_settings(options)), load_card("digits")
    assert (card.recipe.epochs, card.recipe.temperature, card.augment.flip) == (3, 2.5, True)
    assert card.student.knobs == {"channels": [[8, 16]], "hidden": plain.student.knobs["hidden"]}
    assert (card.student.family, card.teacher.shape) == ("mlp", {"hidden": [8]})
    assert card.budget("cpu-arm").limits().items() >= {"size_kb": 50, "latency_p50_ms": 1}.items()
    assert card.recipe.batch_size == plain.recipe.batch_size


def test_settings_that_are_right_only_together() -> None:
    options = ["data.channels=3", "data.mean=[0.5, 0.5, 0.5]", "data.std=[0.2, 0.2, 0.2]"]
    assert load_card("digits", parse_settings(options)).data.channels == 3


def test_an_entry_of_an_array(tmp_path: Path) -> None:
    text = Path(load_card("digits").file).read_text(encoding="utf-8")
    file = tmp_path / "own.toml"
    file.write_text(text + '\n[[assistants]]\nfamily = "mlp"\n', encoding="utf-8")
    card = load_card(str(file), parse_settings(['assistants.0.family="convnet"']))
    assert card.assistants[0].family == "convnet"
    with pytest.raises(
        ConfigError, match=r"^--set assistants.1.family=\"mlp\": assistants: got '1'; it takes an index"
    ):
        load_card(str(file), parse_settings(['assistants.1.family="mlp"']))


def test_keys_of_the_target_are_told_apart() -> None:
    card, target = for_target(parse_settings(["target.session.intra_op_threads=2", "recipe.epochs=3"]))
    assert load_target("cpu-arm", target).session.intra_op_threads == 2
    assert [setting.path for setting in card] == [("recipe", "epochs")]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("recipe.epochs=0", "recipe.epochs: got 0; it should be greater than or equal to 1"),
        ("recipe.epoch=3", "recipe.epoch: unknown key; did you mean 'epochs'"),
        ('budget.size_kb="a"', '[budget]: size_kb: got "a"; it should be a valid number'),
        ("recipe.epochs.x=3", "recipe.epochs is 40, which has no keys"),
        ("recipe=3", "recipe: got 3; it should be an object"),
        (
            "student.family=mlp",
            "got 'mlp'; the value should be TOML; text needs quotes: --set 'student.family=\"mlp\"'",
        ),
        ("recipe", "it should be key=value"),
        ("=3", "it should be key=value"),
        ("a b=3", "the key should be dotted names"),
        ("recipe.seed=99999999999999999999", "holds an integer of more than 64 bits"),
        ('name="x"', "name: unknown key"),
        ("recipe.dkd_alpha=2.0", "recipe.dkd_alpha: "),
    ],
)
def test_an_error_names_the_option(option: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_card("digits", parse_settings([option]))
    assert str(caught.value).startswith(f"--set {option}: {said}")


def test_of_several_options_the_wrong_one_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--set recipe.epochs=0: recipe.epochs: got 0"):
        load_card("digits", parse_settings(["recipe.views=2", "recipe.epochs=0"]))
    with pytest.raises(ConfigError, match=r"sets the same key; give it once$"):
        load_card("digits", parse_settings(["recipe.views=2", "recipe.views=3"]))


def test_further_lines_are_refused() -> None:
    with pytest.raises(ConfigError, match="the value should be TOML"):
        parse_settings(["recipe.epochs=3\nalpha=2"])


def test_a_mistake_in_the_file_is_told_as_such(tmp_path: Path) -> None:
    text = Path(load_card("digits").file).read_text(encoding="utf-8")
    file = tmp_path / "own.toml"
    file.write_text(text.replace("epochs = 40", "epochs = -1"), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^{file}: recipe.epochs: got -1"):
        load_card(str(file), parse_settings(["recipe.views=2"]))


@pytest.mark.parametrize("command", [["distill", "--target", "cpu-arm"], ["teach"]])
def test_the_commands_take_it(command: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / ("t.safetensors" if command == ["teach"] else "run"))
    result = CliRunner().invoke(app, [*command, "--out", out, "--set", "teacher.training.epochs=0"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--set teacher.training.epochs=0: teacher.training.epochs: got 0")


def test_a_teacher_has_no_target(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["teach", "--set", "target.title='x'", "--out", str(tmp_path / "t.safetensors")])
    assert isinstance(result.exception, ConfigError)
    assert "has no effect; a teacher is trained for all targets" in str(result.exception)
