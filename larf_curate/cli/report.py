"""``larf-curate report``: write a report of a scored dataset, or compare two."""

from pathlib import Path
from typing import Literal

import click

from larf_curate.cli.options import EXISTING_FOLDER, FOLDER, NewPath, device_option, no_verify_option
from larf_curate.cli.output import echo_json, json_option
from larf_curate.remote import is_within, public_name


@click.command()
@click.argument("scored", metavar="OUT", type=EXISTING_FOLDER)
@click.option(
    "-o",
    "--output",
    required=True,
    type=NewPath(dir_okay=False, urls=True),
    help="File to write, or its URL.",
)
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Number of highest-scoring rows to show, and of rows without a score.",
)
@click.option(
    "--against",
    metavar="OTHER",
    type=EXISTING_FOLDER,
    help="Compare with another folder of the same rows, scored with another profile or selected otherwise.",
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
@click.option(
    "--format",
    "form",
    type=click.Choice(("html", "md")),
    default="html",
    show_default=True,
    help="A page, or Markdown without plots, table and tokens.",
)
@click.option("--plots", type=FOLDER, help="Folder to write each plot to as well, as SVG and PNG.")
@click.option(
    "--map",
    "projection",
    type=click.Choice(("pca", "umap")),
    default="pca",
    show_default=True,
    help="How stored states are drawn: principal components, or UMAP if umap-learn is installed.",
)
@device_option
@no_verify_option
@json_option
def report(
    scored: Path | str,
    output: Path | str,
    examples: int,
    against: Path | str | None,
    profile: str | None,
    tokens: int,
    model: str | None,
    form: Literal["html", "md"],
    plots: Path | None,
    projection: Literal["pca", "umap"],
    device: str | None,
    as_json: bool,
) -> None:
    """Write a report of scored rows.

    The page is self-contained. OUT is the folder that score, select or review pull wrote.

    \b
    larf-curate report selection/ -o report.html
    larf-curate report selection/ -o report.html --profile profile/ --tokens 10
    larf-curate report scored/ --against other/ -o comparison.html
    """
    endings = (".html", ".htm") if form == "html" else (".md",)
    if is_within(output, scored) and not public_name(output).lower().endswith(endings):
        name = public_name(output)
        raise click.UsageError(
            f"{name} is in the folder of the scored rows: give a name ending in {endings[0]} with -o"
        )
    if plots and is_within(plots, scored):
        raise click.UsageError(f"{plots} is in the folder of the scored rows: give another folder with --plots")
    if against and (profile or tokens or plots or form == "md"):
        raise click.UsageError(
            "--against cannot be combined with --profile, --tokens, --plots or --format md: omit them"
        )
    from larf_curate.report import write_comparison, write_report  # matplotlib is slow to import

    if against:
        path = write_comparison(scored, against, output, examples=examples)
    else:
        path = write_report(
            scored,
            output,
            examples=examples,
            profile=profile,
            tokens=tokens,
            model=model,
            device=device,
            form=form,
            plots=plots,
            projection=projection,
        )
    if as_json:
        echo_json({"report": public_name(path)} | ({"bytes": path.stat().st_size} if isinstance(path, Path) else {}))
    else:
        click.echo(public_name(path))
