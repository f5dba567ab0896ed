"""``larf-curate report``: write an HTML report of a scored dataset."""

from pathlib import Path

import click

from larf_curate.cli.options import EXISTING_FOLDER, NewPath, device_option, no_verify_option
from larf_curate.cli.output import echo_json, json_option
from larf_curate.remote import is_within, public_name


@click.command()
@click.argument("scored", metavar="OUT", type=EXISTING_FOLDER)
@click.option(
    "-o",
    "--output",
    required=True,
    type=NewPath(dir_okay=False, urls=True),
    help="HTML file to write, or its URL.",
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
    scored: Path | str,
    output: Path | str,
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
    if is_within(output, scored) and not public_name(output).lower().endswith((".html", ".htm")):
        name = public_name(output)
        raise click.UsageError(f"{name} is in the folder of the scored rows: give a name ending in .html with -o")
    from larf_curate.report import write_report  # matplotlib is slow to import

    path = write_report(scored, output, examples=examples, profile=profile, tokens=tokens, model=model, device=device)
    if as_json:
        echo_json({"report": public_name(path)} | ({"bytes": path.stat().st_size} if isinstance(path, Path) else {}))
    else:
        click.echo(public_name(path))
