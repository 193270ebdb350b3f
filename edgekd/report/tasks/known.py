"""The charts about answers that the page of a run shows, by the names that tasks give in `charts`."""

from collections.abc import Callable

from edgekd.report.run.story import Story
from edgekd.report.tasks.classification import class_section
from edgekd.report.tasks.detection import box_section
from edgekd.report.tasks.segmentation import map_section
from edgekd.report.tasks.translation import translation_section

__all__ = ["CHARTS"]

CHARTS: dict[str, Callable[[Story, int], tuple[str, str]]] = {
    "classes": class_section,
    "boxes": box_section,
    "maps": map_section,
    "translations": translation_section,
}
"""Functions of a story and the number of runs in the page that return a section: its title and its HTML. The HTML is
empty if there is nothing to show."""
