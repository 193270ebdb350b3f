"""Write docs/reference.md from the types and docstrings of edgekd's code: `python docs/make_reference.py`.

A test fails when the page is older than the code.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from edgekd import augmentation, card, ranges, recipe, target
from edgekd.budget import budget_keys
from edgekd.figures import budgeted
from edgekd.tasks import detection, keyword_spotting, segmentation, translation
from edgekd.tasks.known import deciding

PAGE = Path(__file__).with_name("reference.md")
NETS = Path(inspect.getfile(card)).parent / "nets"
"""The families are read as text, because importing them takes torch."""

TABLES: Mapping[str, str] = {
    "Card": "A model card",
    "Data": "`[data]` of images",
    "TextData": "`[data]` of sentences",
    "ClipData": "`[data]` of clips of sound",
    "MaskData": "`[data]` of images with masks",
    "BoxData": "`[data]` of images with boxes",
    "TranslationData": "`[data]` of translation",
    "Augment": "`[augment]`",
    "Teacher": "`[teacher]`, `[[more_teachers]]`, `[[assistants]]`",
    "Training": "`[teacher.training]`",
    "Student": "`[student]`",
    "Family": "`[[student.families]]`",
    "Recipe": "`[recipe]`",
    "Feature": "`[[recipe.features]]`",
    "Stage": "`[[recipe.stages]]`",
    "Qat": "`[recipe.qat]`",
    "Prune": "`[recipe.prune]`",
    "Export": "`[export]`",
    "Target": "A target",
    "Hardware": "`[hardware]`",
    "Provider": "`[provider]`",
    "Session": "`[session]`",
    "Opset": "`[opset]`",
    "Limits": "`[limits]`",
    "Quantization": "`[quantization]`",
    "Reference": "`[[reference]]`",
}
"""The headings of the classes; others are called by their own name."""

_SIGNS = {
    "ge": "≥",
    "gt": ">",
    "le": "≤",
    "lt": "<",
    "min_length": "at least",
    "max_length": "at most",
    "multiple_of": "a multiple of",
}
_NOT_KEYS = ("name", "file", "budgets")
"""Fields of cards and targets that no file may set; `budgets` is the table `[budget]`."""


def page() -> str:
    """The whole page."""
    parts = [
        "# Every key of cards and targets",
        "Made from the code by `docs/make_reference.py`; do not edit. A key without a default must be given. Paths are "
        "relative to the card or target file.",
    ]
    modules = ranges, recipe, card, detection, segmentation, translation, target
    aliases = _joined(alias for module in modules for alias in _aliases(module))
    for module in (card, keyword_spotting, segmentation, detection, translation, augmentation, recipe, target):
        for node in _classes(module):
            if not node.name.startswith("_"):
                parts += _section(node, aliases, TABLES.get(node.name, node.name))
        if module is recipe:
            parts += [*_budget(), *_families(aliases)]
    return "\n\n".join(parts) + "\n"


def _section(node: ast.ClassDef, aliases: Mapping[str, ast.expr], title: str, level: str = "##") -> list[str]:
    rows = list(_rows(node, aliases))
    about = " ".join((ast.get_docstring(node) or "").split())
    if not rows:
        return []
    return [f"{level} {title}", about, "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])]


def _rows(node: ast.ClassDef, aliases: Mapping[str, ast.expr]) -> Iterator[str]:
    for place, one in enumerate(node.body):
        if not isinstance(one, ast.AnnAssign) or not isinstance(one.target, ast.Name):
            continue
        key = one.target.id
        if key in _NOT_KEYS and node.name in ("Card", "Target"):
            continue
        following = node.body[place + 1] if place + 1 < len(node.body) else None
        told = following.value if isinstance(following, ast.Expr) else None
        meaning = str(told.value) if isinstance(told, ast.Constant) and isinstance(told.value, str) else ""
        cells = [f"`{key}`", _type(one.annotation, aliases), _default(one.value), " ".join(meaning.split())]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "**required**"
    if isinstance(value, ast.Call):
        return "empty"
    text = ast.unparse(value).replace("'", '"')
    known = {"None": "none", '""': "empty", "()": "empty", "False": "`false`", "True": "`true`"}
    return known.get(text, "`" + (f"[{text[1:-1].rstrip(',')}]" if text.startswith("(") else text) + "`")


def _type(node: ast.expr, aliases: Mapping[str, ast.expr]) -> str:
    """A type in words: `Annotated[int, Field(ge=1)]` is `int ≥ 1`."""
    if isinstance(node, ast.Name):
        return _type(aliases[node.id], aliases) if node.id in aliases else _word(node.id)
    if isinstance(node, ast.BinOp):
        both = [_type(node.left, aliases), _type(node.right, aliases)]
        return " or ".join(one for one in both if one != "none")
    if isinstance(node, ast.Constant):
        return "none" if node.value is None else f"`{node.value!r}`"
    if not isinstance(node, ast.Subscript):
        return ast.unparse(node)
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    name = ast.unparse(node.value)
    if name == "Literal":
        return ", ".join(f"`{ast.literal_eval(one)}`" for one in inside)
    if name == "Annotated":
        return " ".join([_type(inside[0], aliases), *filter(None, map(_limit, inside[1:]))])
    if name in ("tuple", "list", "Sequence"):
        kinds = dict.fromkeys(_type(one, aliases) for one in inside if ast.unparse(one) != "...")
        return "list of " + ", ".join(kinds)
    return "table"


def _word(name: str) -> str:
    return {"str": "text", "float": "number", "int": "whole number", "bool": "true or false"}.get(
        name, f"table `{name}`"
    )


def _limit(node: ast.expr) -> str:
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "Field":
        return ""
    limits = [f"{_SIGNS[one.arg]} {_number(one.value)}" for one in node.keywords if one.arg in _SIGNS]
    return "(" + ", ".join(limits) + ")" if limits else ""


def _number(node: ast.expr) -> str:
    """A limit, where a name of the card's module stands for a number."""
    return str(getattr(card, node.id, node.id)) if isinstance(node, ast.Name) else ast.unparse(node)


def _classes(module: ModuleType) -> list[ast.ClassDef]:
    tree = ast.parse(inspect.getsource(module))
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def _aliases(module: ModuleType) -> Iterator[tuple[str, ast.expr]]:
    return _types_in(ast.parse(inspect.getsource(module)))


def _joined(aliases: Iterable[tuple[str, ast.expr]]) -> dict[str, ast.expr]:
    """The types by their names. Raises ValueError if a name stands for two types, because it is looked up without its
    module."""
    joined: dict[str, ast.expr] = {}
    for name, node in aliases:
        if ast.unparse(joined.setdefault(name, node)) != ast.unparse(node):
            raise ValueError(f"{name} stands for {ast.unparse(joined[name])} and for {ast.unparse(node)}; rename one")
    return joined


def _types_in(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The names that stand for a type in a module."""
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Subscript)
        ):
            yield node.targets[0].id, node.value


def _budget() -> list[str]:
    kinds = deciding()
    rows = []
    for key in budget_keys(kinds):
        metric = next((found[key] for found in map(budgeted, kinds) if key in found), None)
        if metric is not None:
            limit = "at least" if metric.better == "higher" else "at most"
            rows.append(
                f"| `{key}` | {limit} | {metric.limit_words} | {'reported, never fails' if metric.advisory else ''} |"
            )
    return [
        "## `[budget]`",
        "Limits for every target; `[budget.TARGET]` adds or replaces limits for one target. The keys of the score come "
        "from the task: accuracy for classification.",
        "\n".join(["| key | limit | of | |", "|---|---|---|---|", *rows]),
    ]


def _families(aliases: Mapping[str, ast.expr]) -> list[str]:
    parts = [
        "## Families",
        "`family` in `[teacher]` and `[student]`. The keys are those of `shape` in `[teacher]`; in `[student.knobs]` "
        'each key has a list of values to try. `family = "import"` takes the network that your own `function` makes; a '
        'teacher may also be `"onnx"` (a file) or `"self"` (the student\'s own network).',
    ]
    trees = {f"edgekd.nets.{path.stem}": ast.parse(path.read_text(encoding="utf-8")) for path in NETS.glob("*.py")}
    shapes = {
        node.name: (node, dict(aliases) | _known_types(tree, trees))
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    tables = {name: node for tree in trees.values() for name, node in _tables_in(tree)}
    for task, table in _pairs(tables["FAMILIES"]):
        parts.append(f"### Families for {task}")
        for name, made in _pairs(tables[ast.unparse(table)]):
            assert isinstance(made, ast.Tuple)  # of a shape and the function that makes its network
            node, own = shapes[ast.unparse(made.elts[0])]
            parts += _section(node, own, f"`{name}`", "####") or [f"#### `{name}`", ast.get_docstring(node) or ""]
    return parts


def _known_types(tree: ast.Module, trees: Mapping[str, ast.Module]) -> dict[str, ast.expr]:
    """The names that stand for a type in a module: its own, and those that it imports from another one of `trees`."""
    known = dict(_types_in(tree))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in trees:
            there = dict(_types_in(trees[node.module]))
            known |= {name.name: there[name.name] for name in node.names if name.name in there}
    return known


def _tables_in(tree: ast.Module) -> Iterator[tuple[str, ast.Dict]]:
    """The dictionaries that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Dict):
            yield node.target.id, node.value


def _pairs(table: ast.Dict) -> Iterator[tuple[str, ast.expr]]:
    for key, value in zip(table.keys, table.values, strict=True):
        assert key is not None  # no `**` in them
        yield str(ast.literal_eval(key)), value


if __name__ == "__main__":
    PAGE.write_text(re.sub(r"\n{3,}", "\n\n", page()), encoding="utf-8")
