"""Write the files of a run that are meant for its reader."""

from collections.abc import Sequence

from edgekd.artefacts import SHIPPED
from edgekd.candidate import Candidate
from edgekd.external import copy_model
from edgekd.files import atomic
from edgekd.report.run.plot import plot_run
from edgekd.result import Result, write_result
from edgekd.run import Run
from edgekd.tables import headline, markdown_report

__all__ = ["write_reports"]


def write_reports(result: Result, candidates: Sequence[Candidate], run: Run) -> None:
    """Write the chosen file, the picture, `report.md` and, last, `result.json`, which marks the run as finished."""
    shipped = copy_model(run.exported / result.shipped.file, run.folder / result.shipped_file)
    for name in set(SHIPPED) - {path.name for path in shipped}:  # of another format
        (run.folder / name).unlink(missing_ok=True)
        run.artefacts.pop(name, None)
    plot_run(
        result.models, candidates, headline(result), run.folder / "figures.png", result.verdict.lines, result.chosen
    )
    with atomic(run.folder / "report.md") as temporary:
        temporary.write_text(markdown_report(result, "figures.png"), encoding="utf-8")
    write_result(result, run.result)
