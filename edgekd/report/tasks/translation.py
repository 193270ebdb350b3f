"""Translations of teacher and student, beside the sentence and its reference."""

from edgekd.report.page import safe, table_of
from edgekd.report.run.story import Story

__all__ = ["translation_section"]


def translation_section(story: Story, runs: int) -> tuple[str, str]:
    """Title and HTML of the section with sample translations; `runs` is the number of runs in the page. The HTML is
    empty if the result holds no translations."""
    names = [story.own.models[0].name, story.chosen]
    known = [(name, story.own.details[name]) for name in names if story.own.details.get(name, {}).get("translations")]
    if not known:
        return "Translations", ""
    samples = [details["translations"] for _, details in known]
    rows = [
        [safe(first[0]), safe(first[1]), *(safe(own[2]) for own in (first, *others))]
        for first, *others in zip(*samples, strict=True)
    ]
    header = ["sentence", "reference", *(safe(name) for name, _ in known)]
    note = f'<p class="note">{safe(story.own.split)} data. sacreBLEU: {safe(known[0][1].get("signature", ""))}</p>'
    return "Translations", table_of(header, rows, set(range(len(header)))) + note
