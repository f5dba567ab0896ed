"""``larf-curate explain``: how much each token of a row contributes to its score."""

from typing import TYPE_CHECKING

import click

from larf_curate.cli.options import device_option, read_columns
from larf_curate.cli.output import echo_json, echo_table, json_option, visible

if TYPE_CHECKING:
    from larf_curate.scoring.explanation import Explanation

SHOWN = 15
"""Tokens shown per row, those with the largest contributions."""


@click.command()
@click.argument("dataset")
@click.option("--profile", "profile_name", metavar="PROFILE", required=True, help="Folder or Hub id of a profile.")
@click.option(
    "--row", "indices", type=click.IntRange(min=0), multiple=True, default=(0,), help="Row index, from 0; repeatable."
)
@click.option("--split", help="Split, if the dataset has several.")
@click.option("--config", help="Configuration of a Hub dataset.")
@click.option("--revision", help="Commit, tag or branch of a Hub dataset.")
@click.option(
    "--columns", callback=read_columns, help="Column names by role, for example user=question,assistant=answer."
)
@click.option("--model", help="Model path, if it has moved since the profile was built.")
@device_option
@json_option
def explain(
    dataset: str,
    profile_name: str,
    indices: tuple[int, ...],
    split: str | None,
    config: str | None,
    revision: str | None,
    columns: dict[str, str] | None,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Attribute the scores of rows to their tokens.

    The score of a row of DATASET is the sum of a part for the text before the row, such as the system prompt, and of
    the contributions of all its tokens. Only the 15 tokens with the largest contributions are shown; --json has all.

    \b
    larf-curate explain data.jsonl --profile profile/ --row 3 --row 7
    """
    from dataclasses import asdict

    from larf_curate.data.sources import open_source
    from larf_curate.data.tables import undecoded
    from larf_curate.profile import SafetyProfile
    from larf_curate.profile.rendering import profile_renderer
    from larf_curate.scoring.explanation import explain as explain_rows
    from larf_curate.scoring.folder import recorded_columns

    # No further than the last row asked for: a Hub dataset may be streamed.
    source = open_source(dataset, split=split, config=config, revision=revision, limit=max(indices) + 1)
    rows = [row for piece in source.pieces for row in undecoded(piece.rows)]
    if max(indices) >= len(rows):
        raise click.BadParameter(f"wanted rows below {len(rows)}, got {max(indices)}", param_hint="--row")
    profile = SafetyProfile.from_pretrained(profile_name)
    columns = columns or recorded_columns(dataset)
    selected = [rows[index] for index in indices]
    explanations = explain_rows(profile, selected, columns=columns, model=model, device=device)
    if as_json:
        results = [asdict(item) if item else {"score": None} for item in explanations]
        echo_json({"rows": [{"row": index, **result} for index, result in zip(indices, results, strict=True)]})
        return
    render = profile_renderer(profile, columns=columns, model=model)
    for index, item in zip(indices, explanations, strict=True):
        if item is None:
            reason = render([rows[index]])[0].reason or "the model's states are not finite"
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
    echo_table(f"{which} contributions", ("token", "text", "contribution"), cells)
