"""Formatting of times, sizes, counts and shares as text. All code uses this module for it."""

import re

__all__ = [
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
]


def milliseconds(ms: float) -> str:
    """`0.2134` → `0.213 ms`; three significant digits, microseconds never hidden."""
    digits = 3 if ms < 1 else 2 if ms < 10 else 1 if ms < 100 else 0
    return f"{ms:.{digits}f} ms"


def bytes_(size: float) -> str:
    """`331616` → `331.6 kB`; kB = 1,000 B and MB = 1,000,000 B."""
    if size < 1_000:
        return f"{size:.0f} B"
    if size < 999_950:
        return f"{size / 1_000:.1f} kB"
    if size < 999_950_000:
        return f"{size / 1_000_000:.1f} MB"
    return f"{size / 1_000_000_000:.2f} GB"


def count(number: float) -> str:
    """`853018` → `853 k`."""
    if number < 1_000:
        return f"{number:.0f}"
    if number < 999_500:
        return f"{number / 1_000:.3g} k"
    if number < 999_500_000:
        return f"{number / 1_000_000:.3g} M"
    return f"{number / 1_000_000_000:.3g} G"


def accuracy(fraction: float) -> str:
    """`0.9173` → `91.73 %`."""
    return f"{100 * fraction:.2f} %"


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts the numbers in texts by their value: `class 2` comes before `class 10`."""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", text)
    return tuple((0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts)


def percent(fraction: float) -> str:
    """`0.0123` → `1.2 %`; values from 10 % on have no decimals."""
    return f"{100 * fraction:.1f} %" if fraction < 0.0995 else f"{100 * fraction:.0f} %"


def ratio(value: float) -> str:
    """A figure as a factor of another one, never a small fraction: `2` → `×2.0`; `0.0804` → `÷12`.

    The text is empty from 0.95 to 1.05, because that says nothing."""
    if 0.95 <= value <= 1.05 or value <= 0:
        return ""
    sign, factor = ("×", value) if value > 1 else ("÷", 1 / value)
    return f"{sign}{factor:.1f}" if factor < 9.95 else f"{sign}{factor:.0f}"


def duration(seconds: float) -> str:
    """`3725` → `1 h 02 min`; `75` → `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def age(seconds: float) -> str:
    """A time in the past: `200` → `3 min ago`; `190000` → `2 days ago`; less than a minute is `just now`."""
    for size, name in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if (number := int(seconds // size)) > 0:
            return f"{number} {name}{'s' if name == 'day' and number > 1 else ''} ago"
    return "just now"


_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters, characters that change the writing direction, other line separators, unpaired surrogates."""
_COMMAND = re.compile(r"(?<!\S):(?=:)|#(?=#(?:\[|vso\[))")
"""Commands that a CI system executes if they are in its log: `::error` at the start of a line, or of any word, because
a table cell may be wrapped before it; `##[error]` anywhere."""


def visible(text: str) -> str:
    r"""Escape text from outside, so that a terminal, a page or a CI log shows it as text: a control character becomes
    text such as `\x1b`.

    Every text from outside edgekd must pass through this function (or through `flat`, which calls it): names of models,
    files and cards, and messages of other libraries. Tabs and line ends stay. The reasons: XML forbids control
    characters, and UTF-8 forbids unpaired surrogates. A terminal executes escape sequences and carriage returns. Text
    after a bidirectional override is shown backwards. GitHub executes `::error::`.
    """
    shown = _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text.replace("\r\n", "\n"))
    return _COMMAND.sub(r"\g<0> ", shown)


def flat(text: str) -> str:
    """Escape text as `visible` does, and put it on one line."""
    return visible(" ".join(text.split()))


def cell(value: object) -> object:
    """A value for CSV. Text is put on one line, and is never a formula, because a spreadsheet would execute it."""
    if not isinstance(value, str):
        return value
    text = flat(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def json_text(text: str) -> str:
    """Escape the characters in JSON text that a terminal or CI log would interpret. The parsed content stays the
    same."""
    escaped = _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return escaped.replace("##[", "#\\u0023[").replace("##vso[", "#\\u0023vso[")
