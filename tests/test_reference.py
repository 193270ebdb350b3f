"""docs/reference.md is what the code says."""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import edgekd
from edgekd.card import MAX_SIDE

ROOT = Path(edgekd.__file__).parent.parent


@pytest.fixture(scope="module")
def writer() -> Any:
    """The program that writes the page."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_page_is_up_to_date(writer: Any) -> None:
    """`python docs/make_reference.py` writes the page anew."""
    text = writer.page()
    assert text == (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for key in ("resize", "calibration_images", "max_accuracy_drop", "depth", "validation_fraction"):
        assert f"| `{key}` |" in text


def test_a_type_is_that_of_its_own_module(writer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (timed,) = re.findall(r"\| `timed_size` \| (.*?) \|", writer.page())
    assert timed == f"list of whole number (≥ 1, ≤ {MAX_SIDE})"
    other = ("Side", ast.parse("Annotated[int, Field(ge=32)]", mode="eval").body)
    aliases = writer._aliases
    monkeypatch.setattr(writer, "_aliases", lambda module: [*aliases(module), other])
    with pytest.raises(ValueError, match=r"^Side stands for .*ge=32.* and for .*MAX_SIDE.*; rename one$"):
        writer.page()
