"""``larf-curate review export``, ``import`` and ``page``: review by files, without a server."""

from pathlib import Path

import click

from larf_curate.cli.options import FOLDER_OR_URL, READ_FOLDER, NewPath, no_verify_option
from larf_curate.cli.output import counted, echo_decisions, echo_json, echo_next, json_option
from larf_curate.cli.pushed import FILES, remember_as, remembered_as
from larf_curate.cli.queues import merge_option
from larf_curate.remote import public_name

FORMATS = {
    "csv": "review.csv",
    "jsonl": "review.jsonl",
    "parquet": "review.parquet",
    "xlsx": "review.xlsx",
    "label-studio": "label-studio.json",
}
"""Name of the file by name of the format."""


@click.command()
@click.argument("selection", metavar="SEL", type=READ_FOLDER)
@click.option(
    "--to",
    "output",
    metavar="FILE",
    type=NewPath(dir_okay=False),
    required=True,
    help="New file, whose ending is the format: .csv, .jsonl, .parquet, .xlsx, or .json for Label Studio. Or the name "
    f"of a format ({', '.join(FORMATS)}), for a file of that name in this folder.",
)
@no_verify_option
@json_option
def export(selection: Path | str, output: Path, as_json: bool) -> None:
    """Write flagged rows to a table, to decide on them without a server.

    SEL is the folder that select wrote. The columns decision (keep, remove, edit or unsure), corrected_answer (for
    edit), comment and annotator are to be filled in; only they, larf_row_id and content_digest are read by import. An
    existing file is not replaced: it may hold decisions.

    \b
    larf-curate review export selection/ --to table.xlsx
    larf-curate review export selection/ --to tasks.json
    """
    from larf_curate.review.files.export import export_review
    from larf_curate.scoring.selection import Selection

    result = export_review(Selection.load(selection), FORMATS.get(str(output), output))
    remember_as(FILES, selection)
    if as_json:
        config = {"config": str(result.config)} if result.config else {}
        echo_json({"file": str(result.path), "rows": result.rows, "cut": list(result.cut)} | config)
        return
    click.echo(f"{counted(result.rows, 'row')} written to {result.path}")
    if result.config:
        click.echo(f"Labeling configuration of the project: {result.config}")
    if result.cut:
        click.echo(
            f"{counted(len(result.cut), 'row')} with a longer text than a cell holds, which is shown in part "
            "(.jsonl and .parquet have it all)"
        )
    # Tasks come back as another file, which Label Studio exports.
    filled_in = "export.json" if result.config else result.path
    echo_next("review", "import", filled_in, "-o", "decisions")


@click.command("import")
@click.argument(
    "files",
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    nargs=-1,
    required=True,
)
@click.option("-o", "--output", metavar="DEC", type=FOLDER_OR_URL, required=True, help="Folder to write, or its URL.")
@click.option(
    "--selection",
    metavar="SEL",
    type=READ_FOLDER,
    help="Folder that was exported.  [default: the one last exported from this machine]",
)
@merge_option
@no_verify_option
@json_option
def import_files(
    files: tuple[Path, ...], output: Path | str, selection: Path | str | None, merge: str, as_json: bool
) -> None:
    """Read decisions from files and split the selection by them.

    FILE is a table of review export that was filled in, what the page of review page saved, or the JSON export of Label
    Studio. With several files or annotators, answers are merged as those of Argilla are: who decided is in the column
    annotator, else it is the name of the file. DEC gets what review pull writes. How many harmful rows are left, which
    review status estimates, is not known from files: they have no random rows.

    \b
    larf-curate review import table.xlsx -o decisions/
    larf-curate review import alice.csv bob.csv -o decisions/ --merge unanimous
    """
    from larf_curate.data.tables import no_progress_bars
    from larf_curate.review.files.imports import import_decisions
    from larf_curate.scoring.selection import Selection

    with no_progress_bars():
        selection = selection or _last_exported(silent=as_json)
        loaded = Selection.load(selection)
        outcome = import_decisions(files, loaded, merge=merge).apply(loaded)
        outcome.save(output)
    if as_json:
        echo_json({"decisions": public_name(output), "counts": outcome.counts, "selection": public_name(selection)})
    else:
        echo_decisions(outcome, output)


def _last_exported(*, silent: bool) -> Path | str:
    """The selection last exported from this machine, which is told: it need not be that of the files."""
    folder = remembered_as(FILES, "review import FILE -o DEC --selection SEL")
    if not silent:
        click.echo(f"Selection {public_name(folder)}, the one last exported from this machine", err=True)
    return folder


@click.command()
@click.argument("selection", metavar="SEL", type=READ_FOLDER)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=NewPath(dir_okay=False),
    default="review.html",
    show_default=True,
    help="HTML file to write.",
)
@no_verify_option
@json_option
def page(selection: Path | str, output: Path, as_json: bool) -> None:
    """Write one HTML file in which to decide on flagged rows alone, by keyboard.

    SEL is the folder that select wrote. The page needs no server and no network. Keys 1 to 4 decide and go on; it saves
    the decisions as a file that import takes.

    \b
    larf-curate review page selection/
    larf-curate review page selection/ -o review.html
    """
    from larf_curate.review.files.page import write_review_page
    from larf_curate.scoring.selection import Selection

    path = write_review_page(Selection.load(selection), output)
    remember_as(FILES, selection)
    if as_json:
        echo_json({"page": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(f"Open {path} in a browser, decide, and save the decisions there")
        echo_next("review", "import", "decisions.json", "-o", "decisions")


commands = (export, import_files, page)
