"""The only place that turns seconds, bytes and counts into text."""

import re

__all__ = ["accuracy", "age", "bytes_", "count", "duration", "flat", "milliseconds", "percent", "ratio", "visible"]


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


_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    r"""Control characters and broken encodings as `\x1b` or `\udc80`; tab and line ends stay.

    Names come from users and file systems; XML forbids these characters, UTF-8 the lone surrogates, and a log obeys
    an escape sequence.
    """
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


_COMMAND = re.compile(r"^:(?=:)|#(?=#\[)")
"""What GitHub's log obeys: `::error` at the start of a line, `##[error]` anywhere."""


def flat(text: str) -> str:
    """On one line, and nothing in it that a terminal or a CI log would obey."""
    return _COMMAND.sub(r"\g<0> ", visible(" ".join(text.split())))
