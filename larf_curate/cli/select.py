"""``larf-curate select``: split a scored dataset into kept and flagged rows."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from larf_curate.cli.options import (
    EXISTING_FOLDER,
    FOLDER_OR_URL,
    FiniteNumber,
    FiniteRange,
    device_option,
    no_verify_option,
)
from larf_curate.cli.output import echo_json, echo_next, echo_table, json_option
from larf_curate.remote import is_within, public_name

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile


@click.command()
@click.argument("scored", metavar="OUT", type=EXISTING_FOLDER)
@click.option("-o", "--output", metavar="SEL", type=FOLDER_OR_URL, required=True, help="Folder to write, or its URL.")
@click.option("--top-ratio", type=FiniteRange(0, 1), help="Flag this share of the scored rows.")
@click.option("--top-k", type=click.IntRange(min=0), help="Flag this many rows.")
@click.option("--threshold", type=FiniteNumber(), help="Flag scores at or above this value.")
@click.option("--percentile", type=FiniteRange(0, 100), help="Flag scores at or above this percentile.")
@click.option(
    "--max-false-flags",
    type=FiniteRange(0, 0.5, min_open=True),
    help="Flag scores that at most this share of rows like the profile's neutral ones reach.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of highest-scoring rows whose token contributions are added for the review; loads the model.",
)
@click.option(
    "--profile",
    "profile_name",
    metavar="PROFILE",
    help="Profile that scored the rows; for --tokens, and for rows that were scored in Python.",
)
@click.option("--model", help="Model path, if it has moved since the profile was built; for --tokens.")
@device_option
@no_verify_option
@json_option
def select(
    scored: Path | str,
    output: Path | str,
    top_ratio: float | None,
    top_k: int | None,
    threshold: float | None,
    percentile: float | None,
    max_false_flags: float | None,
    tokens: int,
    profile_name: str | None,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Split scored rows into kept and flagged ones.

    OUT is the folder that score wrote, or one that save_to_disk wrote, with rows that were scored in Python. SEL gets
    kept/ and flagged/, with a reason for each flagged row. Rows that could not be scored are flagged too, so that a
    person looks at them. Give exactly one rule.

    \b
    larf-curate select scored/ --top-ratio 0.05 -o selection/
    larf-curate select scored/ --top-ratio 0.05 -o selection/ --tokens 50 --profile profile/
    """
    rules = (top_ratio, top_k, threshold, percentile, max_false_flags)
    if (given := sum(rule is not None for rule in rules)) != 1:
        options = "--top-ratio, --top-k, --threshold, --percentile or --max-false-flags"
        raise click.UsageError(f"wanted exactly one of {options}, got {given or 'none'}")
    if tokens and not profile_name:
        raise click.UsageError("--tokens needs the profile that scored the rows: give --profile")
    if is_within(output, scored):
        raise click.UsageError(
            f"wanted a folder outside of {public_name(scored)}, which holds the scored rows: give it with -o"
        )
    from larf_curate.scoring.folder import Scored
    from larf_curate.scoring.selection import select as select_rows

    profile = _load(profile_name) if profile_name else None
    data = Scored.open(scored, profile)
    selection = select_rows(
        data.rows,
        top_ratio=top_ratio,
        top_k=top_k,
        threshold=threshold,
        percentile=percentile,
        max_false_flags=max_false_flags,
        profile=profile,
        source=data.source_id,
        scored=data.manifest,
    )
    if tokens and profile:
        from larf_curate.scoring.explanation import explain_flagged

        selection = explain_flagged(selection, profile, rows=tokens, model=model, device=device)
    selection.save(output)
    summary = selection.summary()
    if as_json:
        echo_json({"selection": public_name(output), **summary})
        return
    echo_table("Selection", ("", "rows"), [(name, f"{count:,}") for name, count in summary["counts"].items()])
    if summary["threshold"] is not None:
        click.echo(f"Lowest flagged score: {summary['threshold']:.4f}")
    click.echo(f"Written to {public_name(output)}")
    echo_next("report", output, "-o", "report.html")
    echo_next("review", "push", output)


def _load(profile_name: str) -> "SafetyProfile":
    from larf_curate.profile import SafetyProfile  # imports torch, which takes seconds

    return SafetyProfile.from_pretrained(profile_name)
