"""What the functions that a card names are made of."""

import dataclasses
from pathlib import Path

from edgekd.imports import sources_of
from edgekd.tasks.known import load_card


def test_the_sources_of_a_function_are_its_modules(tmp_path: Path) -> None:
    card = load_card("digits")
    files = {
        "mynets.py": "import os, parts.blocks\nfrom helper import width\n",
        "helper.py": "def late():\n    import deep\n",
        "deep.py": "",
        "parts/__init__.py": "",
        "parts/blocks.py": "from . import heads\nfrom .tails import tail\n",
        "parts/heads.py": "import mynets\n",
        "parts/tails.py": "this is no Python\n",
        "unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    student = dataclasses.replace(card.student, family="import", function="mynets:student")
    own = dataclasses.replace(card, student=student, file=str(tmp_path / "own.toml"))
    found = sources_of(own)
    assert found.keys() == files.keys() - {"unused.py"}
    (tmp_path / "deep.py").write_text("width = 9\n")
    assert {name for name, digest in sources_of(own).items() if found[name] != digest} == {"deep.py"}
    assert sources_of(card) == {}


def test_the_sources_of_an_installed_module_are_its_package() -> None:
    card = load_card("digits")
    for module, wanted in (
        ("json.decoder", {"json/__init__.py", "json/decoder.py", "json/scanner.py"}),
        ("gone", set()),
    ):
        student = dataclasses.replace(card.student, family="import", function=f"{module}:student")
        assert wanted <= sources_of(dataclasses.replace(card, student=student)).keys()
        assert all(name.startswith("json/") for name in sources_of(dataclasses.replace(card, student=student)))
