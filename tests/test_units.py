"""Seconds, bytes and counts as a person reads them."""

import json

import pytest

from edgekd import units

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What turns the direction in which a screen shows text."""


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0.2134, "0.213 ms"),
        (0.0009, "0.001 ms"),
        (1.0, "1.00 ms"),
        (3.14159, "3.14 ms"),
        (12.34, "12.3 ms"),
        (123.4, "123 ms"),
        (12_345.6, "12346 ms"),
    ],
)
def test_milliseconds(ms: float, text: str) -> None:
    assert units.milliseconds(ms) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (331_616, "331.6 kB"),
        (1_000_000, "1.0 MB"),
        (128_400_000, "128.4 MB"),
        (2_000_000_000, "2.00 GB"),
    ],
)
def test_bytes(size: float, text: str) -> None:
    assert units.bytes_(size) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1 k"),
        (853_018, "853 k"),
        (2_500_000, "2.5 M"),
        (40_551_040, "40.6 M"),
        (4_100_000_000, "4.1 G"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert units.count(number) == text


@pytest.mark.parametrize(
    ("number", "text", "size"),
    [(999_499, "999 k", "999.5 kB"), (999_999, "1 M", "1.0 MB"), (999_999_999, "1 G", "1.00 GB")],
)
def test_numbers_just_below_the_next_unit(number: int, text: str, size: str) -> None:
    assert units.count(number) == text
    assert units.bytes_(number) == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3_599, "59 min 59 s"),
        (3_599.6, "1 h 00 min"),
        (3_725, "1 h 02 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "just now"),  # a file server's clock may be ahead
        (59.9, "just now"),
        (60, "1 min ago"),
        (200, "3 min ago"),
        (3_599, "59 min ago"),
        (7_200, "2 h ago"),
        (86_399, "23 h ago"),
        (86_400, "1 day ago"),
        (190_000, "2 days ago"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert units.age(seconds) == text


@pytest.mark.parametrize(("fraction", "text"), [(0.9173, "91.73 %"), (1, "100.00 %"), (0, "0.00 %")])
def test_accuracies(fraction: float, text: str) -> None:
    assert units.accuracy(fraction) == text


def test_numbers_in_names_are_sorted_by_their_value() -> None:
    assert sorted(["10", "2", "0", "part 12", "part 3", "nut"], key=units.natural) == [
        *("0", "2", "10"),
        *("nut", "part 3", "part 12"),
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.4971, "÷2.0"), (0.0123, "÷81"), (3.456, "×3.5"), (0.98, ""), (1.05, ""), (0, "")]
)
def test_ratios(value: float, text: str) -> None:
    assert units.ratio(value) == text


@pytest.mark.parametrize(
    ("text", "shown", "line"),
    [
        ("größe 1,5 → ✓\t2", "größe 1,5 → ✓\t2", "größe 1,5 → ✓ 2"),
        ("a\x1b[31m\x00\x9b\udcff", r"a\x1b[31m\x00\x9b\udcff", r"a\x1b[31m\x00\x9b\udcff"),
        ("a\n::error::b", "a\n: :error::b", "a : :error::b"),
        (" ::error::b", " : :error::b", ": :error::b"),
        ("a::b", "a::b", "a::b"),
        ("a##[error]b #[c", "a# #[error]b #[c", "a# #[error]b #[c"),
        ("a##vso[task.debug]b", "a# #vso[task.debug]b", "a# #vso[task.debug]b"),
        ("a\rb\r\nc\x0b", "a\\rb\nc\\x0b", "a b c"),
        *((f"a{turn}b", f"a{ascii(turn)[1:-1]}b", f"a{ascii(turn)[1:-1]}b") for turn in BIDI),
    ],
)
def test_nothing_in_a_name_is_obeyed(text: str, shown: str, line: str) -> None:
    assert (units.visible(text), units.flat(text)) == (shown, line)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t-1", "'-1"),
        ("+1", "'+1"),
        ("a=1", "a=1"),
        ("a\u202eb\nc", "a\\u202eb c"),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_no_cell_of_a_table_is_a_formula(value: object, written: object) -> None:
    assert units.cell(value) == written


def test_json_stays_the_same_and_is_not_obeyed() -> None:
    content = ["größe", "\x1b[31m\x9b\udcff\x7f", *BIDI, "##[error]a", "##vso[b]"]
    text = units.json_text(json.dumps(content, indent=2, ensure_ascii=False))
    assert json.loads(text) == content
    assert "größe" in text
    assert not any(mark in text for mark in [*BIDI, "\x7f", "\x9b", "##["])
    text.encode()


def test_every_name_is_tested_and_public() -> None:
    assert set(units.__all__) == {
        "accuracy",
        "age",
        "bytes_",
        "cell",
        "count",
        "duration",
        "flat",
        "json_text",
        "milliseconds",
        "natural",
        "percent",
        "ratio",
        "visible",
    }
