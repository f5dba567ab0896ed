"""``larf-curate report``: write an HTML report of a scored dataset."""

from pathlib import Path

import click

from larf_curate.cli.options import NewPath, device_option, no_verify_option
from larf_curate.cli.output import echo_json, json_option

PAGES = (".html", ".htm")
"""Endings of pages, which no file of scored rows has."""


@click.command()
@click.argument("scored", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=NewPath(dir_okay=False, path_type=Path),
    help="HTML file to write.",
)
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Number of highest-scoring rows to show, and of rows without a score.",
)
@click.option("--profile", metavar="PROFILE", help="Profile that scored the rows; adds a diagnosis of the score.")
@click.option(
    "--tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of highest-scoring rows whose tokens are shaded by their contribution; loads the model.",
)
@click.option("--model", help="Model path, if it has moved since the profile was built; for --tokens.")
@device_option
@no_verify_option
@json_option
def report(
    scored: Path,
    output: Path,
    examples: int,
    profile: str | None,
    tokens: int,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Write an HTML report of scored rows.

    The page is self-contained. OUT is the folder that score or select wrote.

    \b
    larf-curate report selection/ -o report.html
    larf-curate report selection/ -o report.html --profile profile/ --tokens 10
    """
    inside = output.resolve().is_relative_to(scored.resolve())
    if inside and output.suffix.lower() not in PAGES:
        raise click.UsageError(f"{output} is in the folder of the scored rows: give a name ending in .html with -o")
    from larf_curate.report import write_report  # matplotlib is slow to import

    path = write_report(scored, output, examples=examples, profile=profile, tokens=tokens, model=model, device=device)
    if as_json:
        echo_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(path)
