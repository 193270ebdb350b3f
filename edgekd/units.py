"""The only place that turns seconds, bytes and counts into text."""

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


def percent(fraction: float) -> str:
    """`0.0123` → `1.2 %`; from 10 % on without decimals."""
    return f"{100 * fraction:.1f} %" if fraction < 0.0995 else f"{100 * fraction:.0f} %"


def ratio(value: float) -> str:
    """`0.4971` → `0.50 ×`."""
    return f"{value:.3f} ×" if value < 0.1 else f"{value:.2f} ×"


def duration(seconds: float) -> str:
    """`3725` → `1 h 02 min`; `75` → `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def age(seconds: float) -> str:
    """How long ago: `200` → `3 min ago`; `190000` → `2 days ago`; less than a minute, `just now`."""
    for size, name in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if (number := int(seconds // size)) > 0:
            return f"{number} {name}{'s' if name == 'day' and number > 1 else ''} ago"
    return "just now"


_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters, what turns the direction of writing, line ends of other systems, halves of characters."""
_COMMAND = re.compile(r"(?<!\S):(?=:)|#(?=#(?:\[|vso\[))")
"""What a CI log obeys: `::error` at the start of a line or of a cell, which may be folded before any word; `##[error]`
anywhere."""


def visible(text: str) -> str:
    r"""Text from outside as a terminal, a page and a CI log take it as text: a control character becomes `\x1b`.

    Every text that edgekd did not write itself goes through here (or through `flat`, which calls it): names of models,
    files and cards, and messages of other libraries. Tab and line ends stay. XML forbids control characters, UTF-8
    the lone surrogates; a terminal obeys an escape sequence or a carriage return, a screen shows the text after a
    bidirectional override backwards, and GitHub obeys `::error::`.
    """
    shown = _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text.replace("\r\n", "\n"))
    return _COMMAND.sub(r"\g<0> ", shown)


def flat(text: str) -> str:
    """The same on one line."""
    return visible(" ".join(text.split()))


def cell(value: object) -> object:
    """A value for CSV: text on one line, and never a formula, which a spreadsheet would run."""
    if not isinstance(value, str):
        return value
    text = flat(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def json_text(text: str) -> str:
    """The same JSON, in which nothing is obeyed by what shows the file: such characters are escaped, none is lost."""
    escaped = _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return escaped.replace("##[", "#\\u0023[").replace("##vso[", "#\\u0023vso[")
