"""Cards: the bundled files, the budget of a target, and what a mistake in one says."""

import dataclasses
import re
from pathlib import Path

import pytest

from edgekd.budget import Budget, parse_budget
from edgekd.card import Card, Data, caller_rule
from edgekd.errors import ConfigError
from edgekd.spec import bundled_names, locate
from edgekd.tasks.known import load_card, task_of

CARD = """\
title = "a card"
[data]
source = "digits"
size = 8
channels = 1
classes = ["a", "b"]
mean = [0.5]
std = [0.5]
[teacher]
family = "mlp"
[student]
family = "mlp"
[recipe]
epochs = 3
[budget]
size_kb = 60
min_accuracy = 0.9
[budget.cpu-x86]
size_kb = 50
latency_p50_ms = 0.2
"""


def load(folder: Path, *changes: tuple[str, str]) -> Card:
    text = CARD
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_card(str(path))


def problem(folder: Path, *changes: tuple[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, *changes)
    text = str(caught.value)
    assert text.startswith(f"{folder / 'mine.toml'}: ")
    assert "\n" not in text
    return text.removeprefix(f"{folder / 'mine.toml'}: ")


# --- bundled ---


@pytest.mark.parametrize("name", bundled_names("models"))
def test_every_bundled_card_loads(name: str) -> None:
    card = load_card(name)
    assert card.name == name
    assert card.file == str(locate("models", name))
    assert card.title
    assert task_of(card.data).outputs(card.data) >= 2
    if isinstance(card.data, Data):
        assert len(card.data.mean) == len(card.data.std) == card.data.channels
    assert card.budget("cpu-x86") != Budget()
    assert card.student.knobs


def test_the_cards_that_others_are_made_from_exist() -> None:
    assert set(bundled_names("models")) >= {
        "cifar10",
        "cifar10-cnn",
        "digits",
        "imagenet",
        "mnist-convnet",
        "mnist-mlp",
        "speech-commands",
        "sst2",
    }
    assert len(load_card("imagenet").data.classes) == len(set(load_card("imagenet").data.classes)) == 1_000


# --- budgets ---


def test_a_targets_budget_adds_to_the_general_one(tmp_path: Path) -> None:
    card = load(tmp_path)
    assert card.budget("wasm") == Budget(size_kb=60, min_accuracy=0.9)
    assert card.budget("cpu-x86") == Budget(size_kb=50, min_accuracy=0.9, latency_p50_ms=0.2)


def test_the_command_line_wins(tmp_path: Path) -> None:
    card = load(tmp_path)
    asked = card.budget("cpu-x86", Budget(size_kb=10, peak_memory_mb=70, max_accuracy_drop=0))
    assert asked == Budget(size_kb=10, min_accuracy=0.9, latency_p50_ms=0.2, peak_memory_mb=70, max_accuracy_drop=0)


def test_zero_is_a_value() -> None:
    assert Budget(min_accuracy=0.9, max_accuracy_drop=2).with_values(
        Budget(min_accuracy=0, max_accuracy_drop=0)
    ) == Budget(min_accuracy=0, max_accuracy_drop=0)


def test_a_card_may_have_no_budget(tmp_path: Path) -> None:
    card = load(tmp_path, (CARD[CARD.index("[budget]") :], ""))
    assert card.budget("cpu-x86") == Budget()


def test_an_unknown_key_in_a_budget(tmp_path: Path) -> None:
    known = (
        "instructions_m, latency_p50_ms, latency_p95_ms, latency_p99_ms, load_ms, max_accuracy_drop, min_accuracy, "
        "min_agreement, min_coverage, min_fused_share, peak_memory_mb, size_kb, teacher_min_accuracy"
    )
    assert problem(tmp_path, ("size_kb = 60", "size_mb = 60")) == (
        f"[budget]: size_mb: unknown key; did you mean 'size_kb'? Known: {known}."
    )
    said = problem(tmp_path, ("latency_p50_ms", "latency_ms"))
    assert said.startswith(
        "[budget.cpu-x86]: latency_ms: unknown key; "
        "did you mean 'latency_p99_ms' or 'latency_p95_ms' or 'latency_p50_ms'?"
    )
    assert problem(tmp_path, ("[budget.cpu-x86]", "[budget.cpu-x86.size_kb]")).startswith(
        "[budget.cpu-x86]: size_kb: got {"
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("size_kb = 60", "size_kb = 0", "[budget]: size_kb: got 0; it should be greater than 0"),
        ("size_kb = 60", "size_kb = -3", "[budget]: size_kb: got -3; it should be greater than 0"),
        ("size_kb = 60", "size_kb = nan", "[budget]: size_kb: got NaN; it should be a finite number"),
        ("size_kb = 60", "size_kb = inf", "[budget]: size_kb: got Infinity; it should be a finite number"),
        ("size_kb = 60", 'size_kb = "60"', '[budget]: size_kb: got "60"; it should be a valid number'),
        (
            "min_accuracy = 0.9",
            "min_accuracy = 90",
            "[budget]: min_accuracy: got 90; it should be less than or equal to 1",
        ),
        (
            "latency_p50_ms = 0.2",
            "latency_p50_ms = 0",
            "[budget.cpu-x86]: latency_p50_ms: got 0; it should be greater than 0",
        ),
    ],
)
def test_a_budget_that_means_nothing(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert problem(tmp_path, (before, after)) == said


def test_a_budget_that_is_no_table(tmp_path: Path) -> None:
    text = CARD[: CARD.index("[budget]")]
    (tmp_path / "mine.toml").write_text("budget = 3\n" + text)
    with pytest.raises(ConfigError, match=r"mine\.toml: budget: got 3; it should be a table of limits"):
        load_card(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("validation_seed = 4294967296", "data.validation_seed: got 4294967296; it should be less than 4294967296"),
        (f"validation_seed = {2**128}", "data.validation_seed: holds an integer of more than 64 bits"),
        ("resize = 10_000_000", "data.resize: got 10000000; it should be less than or equal to 8192"),
        ("[augment]\ncrop_padding = 9", "augment.crop_padding: got 9; it should be at most data.size, 8, for a crop"),
        ("[augment]\nseed = 4294967296", "augment.seed: got 4294967296; it should be less than 4294967296"),
        (f'function = "{"f" * 100_000}"', "data.function: should be package.module:function, got 'ffff"),
    ],
)
def test_more_than_any_network_needs(tmp_path: Path, data: str, said: str) -> None:
    told = problem(tmp_path, ("[teacher]", f"{data}\n[teacher]"))
    assert told.startswith(said)
    assert len(told) < 240
    assert problem(tmp_path, ("size = 8", "size = 1000000")) == (
        "data.size: got 1000000; it should be less than or equal to 8192"
    )


def test_budgets_of_the_command_line() -> None:
    assert parse_budget([]) == Budget()
    assert parse_budget(["size_kb=300", " min_accuracy =0.5", "latency_p50_ms=1e-1"]) == Budget(
        size_kb=300, min_accuracy=0.5, latency_p50_ms=0.1
    )
    assert parse_budget(["size_kb=300", "size_kb=200"]) == Budget(size_kb=200)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("size_kb", "--budget 'size_kb': it should be key=value, such as size_kb=300"),
        ("size_kb=small", "--budget size_kb: got 'small'; it should be a number"),
        ("size_kb=", "--budget size_kb: got ''; it should be a number"),
        ("size_kb=0", "--budget: size_kb: got 0.0; it should be greater than 0"),
        ("size_kb=-1", "--budget: size_kb: got -1.0; it should be greater than 0"),
        ("size_kb=nan", "--budget: size_kb: got NaN; it should be a finite number"),
        ("max_accuracy_drop=101", "--budget: max_accuracy_drop: got 101.0; it should be less than or equal to 100"),
    ],
)
def test_a_wrong_budget_of_the_command_line(option: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_budget([option])
    assert str(caught.value) == said


def test_an_unknown_budget_of_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"^--budget: latency: unknown key; did you mean 'latency_p\d\d_ms'"):
        parse_budget(["latency=3"])


# --- settings without effect ---


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("alpha = 0.5\nlosses = { kd = 1.0 }", "recipe.alpha: has no effect here; it needs no losses or stages, which"),
        ("peers = 2", "recipe.peers: has no effect here; it needs the term mutual"),
        ('combine = "confidence"\nteacher_weights = [1.0]', "recipe.teacher_weights: has no effect here; it"),
        ("temperature_end = 2.0", 'recipe.temperature_end: has no effect here; it needs temperature_schedule = '),
        ('temperature_schedule = "linear"\ntemperature_max = 9.0', "recipe.temperature_max: has no effect here"),
        ("losses = { mse = 1.0 }\ntemperature = 3.0", "recipe.temperature: has no effect here; it needs one of"),
        ('losses = { mse = 1.0 }\ntemperature_schedule = "learned"', "recipe.temperature_schedule: has no effect here"),
        ("losses = { kd = 1.0 }\nlabel_smoothing = 0.1", "recipe.label_smoothing: has no effect here; it needs"),
        ('losses = { kd = 1.0 }\nclass_weights = "balanced"', "recipe.class_weights: has no effect here; it needs the"),
        ('optimizer = "adamw"\nmomentum = 0.5', 'recipe.momentum: has no effect here; it needs optimizer = "sgd" or'),
        ('qat = { epochs = 1, optimizer = "muon" }', 'recipe.qat.optimizer: "muon" has no effect on layers whose'),
        ("qat = { epochs = 1, matrix_learning_rate = 0.1 }", "recipe.qat.matrix_learning_rate: has no effect here; it"),
        ("matrix_learning_rate = 0.1", 'recipe.matrix_learning_rate: has no effect here; it needs optimizer = "muon"'),
        ('optimizer = "adamw"\nmatrix_weight_decay = 0.1', "recipe.matrix_weight_decay: has no effect here; it"),
        ('combine = "confidence"', "recipe.combine: has no effect here; it needs [[more_teachers]]"),
        ('[[assistants]]\nfamily = "mlp"\nweights = "a.pt"', "assistants.0.weights: has no effect; assistants are"),
        ('[[assistants]]\nfamily = "mlp"\nattempts = 3', "assistants.0.attempts: has no effect; it is for [teacher]"),
        ('[[more_teachers]]\nfamily = "mlp"\ntraining = { epochs = 1 }', "more_teachers.0.training: has no effect; a"),
        ("dkd_beta = 2.0", "recipe.dkd_beta: has no effect here; it needs the term dkd"),
        ("loaded_learning_rate_factor = 0.2", "recipe.loaded_learning_rate_factor: has no effect; it needs student.w"),
        ('[[assistants]]\nfamily = "mlp"\ntraining = { epochs = 1, loaded_learning_rate_factor = 0.2 }',
         "assistants.0.training.loaded_learning_rate_factor: has no effect; assistants are trained from new"),
        ("loaded_learning_rate_factor = 1.5", "loaded_learning_rate_factor: got 1.5; it should be less than"),
        ('losses = { mse = 1.0 }\nsampling = "points"', "sampling: "),
        ("sampling_strength = 2.0", "recipe.sampling_strength: has no effect here; it needs sampling"),
        ('[[recipe.features]]\nterm = "hint"\nnegatives = 5', "recipe.features: hint: negatives: has no effect "),
        ('[[recipe.features]]\nterm = "vid"\nwhere = "foreground"',
         "recipe.features: vid: where: has no effect here; it is for match, hint, channel"),
        ('schedule = "one-cycle"\nwarmup_epochs = 2', "recipe.warmup_epochs: has no effect here; schedule ="),
        ("warmup_epochs = 4", "warmup_epochs: should be at most the 3 epochs, got 4"),
        ("warmup_epochs = 2\nstages = [{ epochs = 1, losses = { kd = 1.0 } }, { epochs = 2, losses = { kd = 1.0 } }]",
         "warmup_epochs: should be at most the 1 epochs of the shortest stage"),
        ("class_weights = [1.0, -2.0]",
         'recipe.class_weights: got [1.0, -2.0]; it should be "none", "balanced" or a positive number for each class'),
        ('class_weights = "balance"', "recipe.class_weights: got 'balance'; it should be \"none\", \"balanced\" or a"),
        ('class_weights = [1.0, "a"]', "recipe.class_weights: got [1.0, 'a']; it should be"),
        ("class_weights = [1.0, nan]", "recipe.class_weights: got [1.0, nan]; it should be"),
        ("class_weights = []", "recipe.class_weights: got []; it should be"),
        ("class_weights = [true, 1.0]", 'recipe.class_weights: got [True, 1.0]; it should be "none", "balanced" or a'),
        ("class_weights = 3", "recipe.class_weights: got 3; it should be"),
        ("seed = 4294967296", "seed: got 4294967296; it should be less than 4294967296"),
        ("[augment]\nrand_magnitude = 3", "rand_operations, rand_magnitude: have no effect without policy"),
        ("[augment]\nword_dropout = 0.1", "augment.word_dropout: is for sentences, the task is image-classification"),
    ],
)  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, recipe: str, said: str) -> None:
    assert said in problem(tmp_path, ("[recipe]\nepochs = 3", f"[recipe]\nepochs = 3\n{recipe}"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("[student]", '[student]\nweights = "a.pt"'), ("[recipe]", "[recipe]\ninit_from_teacher = true")],
         "recipe.init_from_teacher: cannot be combined with student.weights; both say where the student starts"),
        ([("[student]", '[student]\nweights = "a.pt"'), ('[teacher]\nfamily = "mlp"', '[teacher]\nfamily = "self"')],
         'student.weights: cannot be combined with teacher.family = "self"; name the same family, shape and weights'),
        ([("[student]", '[student]\nweights = "pretrained"')],
         'student.weights: only the families torchvision and timm have published weights ("pretrained")'),
        ([("[teacher]", '[teacher]\nweights = "a.pt"\ndownload = true')],
         'teacher.download: has no effect; it is for weights = "pretrained"'),
        ([("[teacher]", '[teacher]\nweights = "a.onnx"\ntraining = { epochs = 1 }')],
         "teacher.training: has no effect; an ONNX model is used as it is and cannot be fine-tuned"),
    ],
)  # fmt: skip
def test_weights_to_start_from_that_contradict(tmp_path: Path, changes: list[tuple[str, str]], said: str) -> None:
    assert problem(tmp_path, *changes).startswith(said)


@pytest.mark.parametrize(
    "other",
    [
        "label_smoothing = 0.1",
        "temperature = 2.0",
        "temperature = 2.0\nstandardize = true",
        'class_weights = "balanced"',
    ],
)
def test_settings_by_which_assistants_learn_are_allowed(tmp_path: Path, other: str) -> None:
    recipe = (
        f'{other}\n[[recipe.stages]]\nepochs = 3\nfeatures = [{{ term = "match" }}]\n[[assistants]]\nfamily = "mlp"'
    )
    assert load(tmp_path, ("[recipe]\nepochs = 3", f"[recipe]\nepochs = 3\n{recipe}")).assistants


def test_settings_by_which_a_teacher_of_the_same_kind_learns_are_allowed(tmp_path: Path) -> None:
    recipe = "[recipe]\nepochs = 3\nlabel_smoothing = 0.1\nlosses = { kd = 1.0 }"
    own = ('[teacher]\nfamily = "mlp"', '[teacher]\nfamily = "self"')
    card = load(tmp_path, ("[recipe]\nepochs = 3", recipe), own)
    assert card.recipe.label_smoothing == 0.1
    shape = ('[teacher]\nfamily = "mlp"', '[teacher]\nfamily = "self"\nshape = { hidden = [8] }')
    assert problem(tmp_path, shape).startswith("teacher.shape: has no effect; ")


def test_sentences_have_no_sides_to_flip(tmp_path: Path) -> None:
    text = Path(load_card("sst2").file).read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace("[augment]", "[augment]\nflip = true"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.toml: augment\.flip: is for images, the task is text-classification"):
        load_card(str(tmp_path / "mine.toml"))


# --- the rest of the card ---


def test_paths_begin_at_the_cards_folder(tmp_path: Path) -> None:
    card = load(tmp_path)
    assert card.resolve("data/x") == tmp_path / "data" / "x"
    assert card.resolve("/data/x") == Path("/data/x")
    assert (card.name, card.file) == ("mine", str(tmp_path / "mine.toml"))


def test_defaults_are_those_the_documentation_names(tmp_path: Path) -> None:
    card = load(tmp_path)
    assert (card.recipe.temperature, card.recipe.alpha, card.recipe.views) == (4.0, 0.9, 8)
    assert card.data.validation_fraction == 0.1
    assert card.teacher.attempts == 2
    assert isinstance(card.data, Data) and not card.data.download


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("epochs = 3", "epoch = 3", r"recipe\.epoch: unknown key; did you mean 'epochs' .+ \(and 1 more\)"),
        ("epochs = 3", "epochs = 0", r"recipe\.epochs: got 0; it should be greater than or equal to 1"),
        ("epochs = 3", "epochs = 3\nalpha = 2", r"recipe\.alpha: got 2; it should be less than or equal to 1"),
        ("epochs = 3", "epochs = 3\ntemperature = 0", r"recipe\.temperature: got 0; it should be greater than 0"),
        ("epochs = 3", 'epochs = 3\noptimizer = "adam"', r"recipe\.optimizer: got .adam.; it should be 'sgd', 'ada.+"),
        ('source = "digits"', 'source = "digit"', r"data\.source: got \"digit\"; it should be 'digits', 'parquet', .+"),
        ("mean = [0.5]", "mean = [0.5, 0.5, 0.5]", r"data: must give mean as 1 numbers, one per channel, got 3"),
        ("std = [0.5]", "std = [0.0]", r"data\.std\.0: got 0\.0; it should be greater than 0.*"),
        ('classes = ["a", "b"]', 'classes = ["a"]', r"data\.classes: got \[\"a\"\]; it .+ at least 2 items.*"),
        ('source = "digits"', 'source = "import"', r"data: must name `function = \"package\.module:function\"` .+"),
        ('source = "digits"', 'source = "torchvision"', r"data: must give `name`, a data set of torchvision, .+"),
        ("size = 8", 'size = 8\nfunction = "module.load"', r"data\.function: should be package\.module:function, .+"),
        ('title = "a card"', "", r"title: is missing; add it"),
        ('title = "a card"', 'title = "a"\nname = "b"', r"name: unknown key; .*"),
        ('title = "a card"', 'title = "a"\nfile = "b"', r"file: unknown key; .*"),
        ('title = "a card"', 'title = "a"\nbudgets = 3', r"budgets: unknown key; did you mean 'budget'\? .*"),
        ('title = "a card"', 'titel = "a"', r"titel: unknown key; did you mean 'title' or 'trials'\? .*"),
        ('title = "a card"', 'title = "a"\ntask = "colouring"', r"task: got 'colouring'; Known: .*image-class.+"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert re.fullmatch(said, problem(tmp_path, (before, after)))


def test_knobs_are_lists(tmp_path: Path) -> None:
    knobs = '[student]\nfamily = "mlp"\n[student.knobs]\nhidden = {}\n'
    before = '[student]\nfamily = "mlp"\n'
    assert load(tmp_path, (before, knobs.format("[[4], [8]]"))).student.knobs == {"hidden": [[4], [8]]}
    assert problem(tmp_path, (before, knobs.format("[]"))).startswith("student.knobs.hidden: got []; it ")
    assert problem(tmp_path, (before, knobs.format("4"))) == "student.knobs.hidden: got 4; it should be a valid array"


# --- image files ---


FILES = ('source = "digits"', 'source = "image-folder"')


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("background = [0, 0]", "data.background.2: is missing; add it"),
        ("background = [0, 0, 256]", "data.background.2: got 256; it should be less than or equal to 255"),
        ("background = [0, 0, 1.0]", "data.background.2: got 1.0; it should be a valid integer"),
        ("skip_broken = 1", "data.skip_broken: got 1; it should be a valid boolean"),
        (
            'image_column = "picture"',
            'data: image_column: has no effect with source = "image-folder"; it is for "parquet"',
        ),
    ],
)
def test_keys_of_image_files(tmp_path: Path, line: str, said: str) -> None:
    assert problem(tmp_path, FILES, ("size = 8", f"size = 8\n{line}")).startswith(said)


@pytest.mark.parametrize("line", ["background = [1, 2, 3]", "skip_broken = true"])
def test_keys_of_image_files_have_no_effect_on_embedded_data(tmp_path: Path, line: str) -> None:
    key = line.split()[0]
    said = f'data: {key}: has no effect with source = "digits"; it is for image files'
    assert problem(tmp_path, ("size = 8", f"size = 8\n{line}")) == said


def test_what_pixels_depend_on_has_no_new_keys_at_their_defaults(tmp_path: Path) -> None:
    data = load(tmp_path, FILES).data
    assert isinstance(data, Data)
    added = {"background", "skip_broken", "image_column", "label_column"}
    assert not added & data.preprocessing().keys()
    assert dataclasses.replace(data, skip_broken=True).preprocessing() == data.preprocessing()
    other = dataclasses.replace(data, background=(1, 2, 3)).preprocessing()
    assert other == data.preprocessing() | {"background": (1, 2, 3)}


def test_class_names_are_composed(tmp_path: Path) -> None:
    card = load(tmp_path, ('"a"', '"cafe\u0301"'))
    assert card.data.classes[0] == "caf\u00e9"
    said = problem(tmp_path, ('"a", "b"', '"cafe\u0301", "caf\u00e9"'))
    assert said.startswith("data.classes: should name each class once; 'caf\u00e9' is there in two forms of Unicode")


def test_what_the_caller_must_do_to_an_image(tmp_path: Path) -> None:
    def rule(*changes: tuple[str, str]) -> str:
        return caller_rule({"data": vars(load(tmp_path, *changes).data)})

    assert rule() == "none, 8x8 as given; grey, uint8, 0 to 255"
    assert rule(FILES) == "upright, shorter side to 8 (bilinear), centre 8x8 cut out; grey, uint8, 0 to 255"
    assert rule(FILES, ("size = 8", "size = 8\nresize = 10")).startswith(
        "upright, shorter side to 10 (bilinear), centre 8x8 cut out; "
    )
    assert caller_rule({"data": vars(load_card("imagenet").data)}).endswith("; RGB, uint8, 0 to 255")
    assert caller_rule({"data": vars(load_card("sst2").data)}) == caller_rule({}) == ""
