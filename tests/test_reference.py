"""docs/reference.md is what the code says."""

import importlib.util
from pathlib import Path

import edgekd

ROOT = Path(edgekd.__file__).parent.parent


def test_the_reference_page_is_up_to_date() -> None:
    """`python docs/make_reference.py` writes the page anew."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.page()
    assert text == (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for key in ("resize", "calibration_images", "max_accuracy_drop", "depth", "validation_fraction"):
        assert f"| `{key}` |" in text
