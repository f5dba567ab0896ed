"""``larf-curate explain``: which tokens of a row moved its score."""

from typing import TYPE_CHECKING

import click

from larf_curate.cli.options import device_option, read_columns
from larf_curate.cli.output import echo_json, echo_table, json_option, visible

if TYPE_CHECKING:
    from larf_curate.conversation.schemas import Row
    from larf_curate.scoring.explanation import Explanation, TokenWeight

SHOWN = 15


@click.command()
@click.argument("dataset")
@click.option("--profile", "profile_name", metavar="PROFILE", required=True, help="Folder or Hub id of a profile.")
@click.option(
    "--row", "places", type=click.IntRange(min=0), multiple=True, default=(0,), help="Row, from 0; repeatable."
)
@click.option("--split", help="Split, where the dataset has several.")
@click.option("--config", help="Configuration of a Hub dataset.")
@click.option("--revision", help="Commit, tag or branch of a Hub dataset.")
@click.option("--columns", callback=read_columns, help="Columns by role, as in user=question,assistant=answer.")
@click.option("--model", help="Where the model lies now, if not where it lay when the profile was built.")
@device_option
@json_option
def explain(
    dataset: str,
    profile_name: str,
    places: tuple[int, ...],
    split: str | None,
    config: str | None,
    revision: str | None,
    columns: dict[str, str] | None,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Take the scores of some rows of DATASET apart: how far each token moved them.

    \b
    larf-curate explain data.jsonl --profile profile/ --row 3 --row 7
    """
    from dataclasses import asdict

    from larf_curate.data.sources import open_source
    from larf_curate.profile import SafetyProfile
    from larf_curate.scoring.explanation import explain as take_apart

    source = open_source(dataset, split=split, config=config, revision=revision, limit=max(places) + 1)
    rows = [row for piece in source.pieces for row in piece.rows]
    if max(places) >= len(rows):
        raise click.BadParameter(f"wanted rows below {len(rows)}, got {max(places)}", param_hint="--row")
    profile = SafetyProfile.from_pretrained(profile_name)
    found = take_apart(profile, [rows[place] for place in places], columns=columns, model=model, device=device)
    if as_json:
        told = [asdict(item) if item else {"score": None} for item in found]
        echo_json({"rows": [{"row": place, **item} for place, item in zip(places, told, strict=True)]})
        return
    for place, item in zip(places, found, strict=True):
        if item is None:
            click.echo(visible(f"Row {place} has no score: {_reason(rows[place], columns)}"))
        else:
            _show(place, item)


def _reason(row: "Row", columns: dict[str, str] | None) -> str:
    from larf_curate.conversation.schemas import to_messages
    from larf_curate.errors import ConversationError

    try:
        to_messages(row, columns)
    except ConversationError as error:
        return str(error)
    return "nothing of it can be scored, or the model gives no numbers"


def _show(place: int, item: "Explanation") -> None:
    """The tokens that moved the score most, in their order."""
    by_weight = sorted(enumerate(item.tokens), key=lambda numbered: -abs(numbered[1].weight))
    cells = [(str(i), repr(token.text), f"{token.weight:+.3f}") for i, token in sorted(by_weight[:SHOWN], key=_number)]
    title = f"Row {place}: score {item.score:.3f}, {item.start:+.3f} of it before the row's own text; strongest tokens"
    echo_table(title, ("token", "text", "moved the score by"), cells)


def _number(numbered: "tuple[int, TokenWeight]") -> int:
    return numbered[0]
