"""``larf-curate explain``: how much each token of a row contributes to its score."""

from typing import TYPE_CHECKING

import click

from larf_curate.cli.options import columns_to_read, device_option, read_columns, side_option
from larf_curate.cli.output import echo_json, echo_table, json_option, visible

if TYPE_CHECKING:
    from larf_curate.scoring.explanation import Explanation

SHOWN = 15
"""Tokens shown per row, those with the largest contributions."""


@click.command()
@click.argument("data", metavar="DATA...", nargs=-1, required=True)
@click.option("--profile", "profile_name", metavar="PROFILE", help="Folder or Hub id of the profile.")
@click.option(
    "--row",
    "names",
    multiple=True,
    default=("0",),
    help="Index of a row, from 0, or its larf_row_id; repeatable.  [default: 0]",
)
@click.option("--split", help="Split, if the dataset has several.")
@click.option("--config", help="Configuration of a Hub dataset.")
@click.option("--revision", help="Commit, tag or branch of a Hub dataset.")
@click.option(
    "--columns", callback=read_columns, help="Column names by role, for example user=question,assistant=answer."
)
@side_option
@click.option("--model", help="Model path, if it has moved since the profile was built.")
@device_option
@json_option
def explain(
    data: tuple[str, ...],
    profile_name: str | None,
    names: tuple[str, ...],
    split: str | None,
    config: str | None,
    revision: str | None,
    columns: dict[str, str] | None,
    side: str | None,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Attribute the scores of rows to their tokens.

    The score of a row of DATA is the sum of a part for the text before the row, such as the system prompt, and of
    the contributions of all its tokens. Only the 15 tokens with the largest contributions are shown; --json has all.

    DATA is one or several datasets as for score, or a folder that score or select wrote, which records the columns and
    the profile.

    \b
    larf-curate explain data.jsonl --profile profile/ --row 3 --row 7
    larf-curate explain selection/ --row 0
    """
    from dataclasses import asdict

    from larf_curate.data.tables import text_rows
    from larf_curate.profile import SafetyProfile
    from larf_curate.profile.cache import profile_of
    from larf_curate.profile.rendering import profile_renderer
    from larf_curate.scoring.explanation import explain as explain_rows
    from larf_curate.scoring.preview import PreviewRows, as_index

    last = max(as_index(name) or 0 for name in names)
    rows = PreviewRows.open(data, row=last, split=split, config=config, revision=revision)
    indices = [rows.find(name) for name in names]
    given = SafetyProfile.from_pretrained(profile_name) if profile_name else None
    profile = profile_of(rows.manifest, given)
    if profile is None:
        raise click.UsageError("say which profile scores the rows: --profile PROFILE")
    columns = columns_to_read(rows.rows.column_names, columns, side) or (dict(rows.columns) if rows.columns else None)
    selected = list(text_rows(rows.source_rows().select(indices)))
    explanations = explain_rows(profile, selected, columns=columns, model=model, device=device)
    if as_json:
        results = [asdict(item) if item else {"score": None} for item in explanations]
        echo_json({"rows": [{"row": index, **result} for index, result in zip(indices, results, strict=True)]})
        return
    render = profile_renderer(profile, columns=columns, model=model)
    for index, row, item in zip(indices, selected, explanations, strict=True):
        if item is None:
            reason = render([row])[0].reason or "the model's states are not finite"
            click.echo(visible(f"Row {index} has no score: {reason}"))
        else:
            _echo_explanation(index, item)


def _echo_explanation(index: int, item: "Explanation") -> None:
    """Print the tokens with the largest absolute contributions, in the order of the text."""
    largest_first = sorted(enumerate(item.tokens), key=lambda numbered: -abs(numbered[1].weight))
    shown = sorted(largest_first[:SHOWN], key=lambda numbered: numbered[0])
    cells = [(str(number), repr(token.text), f"{token.weight:+.3f}") for number, token in shown]
    click.echo(
        f"Row {index}: score {item.score:.3f} = {item.start:+.3f} (text before the row, such as the system prompt) + "
        "the contributions of its tokens"
    )
    # The table is partial, so that its numbers need not add up to the score.
    which = f"{len(shown)} largest of {len(item.tokens)}" if len(shown) < len(item.tokens) else f"All {len(shown)}"
    echo_table(f"{which} contributions, in the order of the text", ("token", "text", "contribution"), cells)
