"""``larf-curate preview``: a row as the model reads it, and counts over the first rows."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from larf_curate.cli.options import columns_to_read, read_columns, side_option
from larf_curate.cli.output import counted, echo_json, echo_table, json_option, visible

if TYPE_CHECKING:
    from larf_curate.conversation.chat_template import Renderer
    from larf_curate.models.source import ModelSource
    from larf_curate.scoring.preview import PreviewRows, RowCounts, RowPreview

SHOWN_CHARACTERS = 2_000  # of a row that cannot be rendered
SHOWN_COUNTS = 20  # kinds of rows, by status and reason


@click.command()
@click.argument("data", metavar="DATA...", nargs=-1, required=True)
@click.option("--profile", "profile_name", metavar="PROFILE", help="Folder or Hub id of the profile to score with.")
@click.option("--model", help="Folder or Hub id of a model, without a profile; with one, its path if it has moved.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a Jinja chat template, used instead of the model's own; without a profile, which has its own.",
)
@click.option("--template-name", help="Name of one of several chat templates of the model; without a profile.")
@click.option("--row", default="0", show_default=True, help="Index of the row to show, from 0, or its larf_row_id.")
@click.option("--split", help="Split, if the dataset has several.")
@click.option("--config", help="Configuration of a Hub dataset.")
@click.option("--revision", help="Commit, tag or branch of a Hub dataset.")
@click.option(
    "--columns", callback=read_columns, help="Column names by role, for example user=question,assistant=answer."
)
@side_option
@click.option("--trust-remote-code", is_flag=True, help="Allow code from the model's repository to run.")
@json_option
def preview(
    data: tuple[str, ...],
    profile_name: str | None,
    model: str | None,
    chat_template: Path | None,
    template_name: str | None,
    row: str,
    split: str | None,
    config: str | None,
    revision: str | None,
    columns: dict[str, str] | None,
    side: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Show rows as the model reads them.

    Counts how the first thousand rows are read, and shows the text of one after the chat template, token by token, with
    the tokens that are learned in training and scored, or the reason why it cannot be scored. Loads the tokenizer, not
    the model's weights.

    DATA is one or several datasets as for score, or a folder that score or select wrote, which records the columns and
    the profile.

    \b
    larf-curate preview data.jsonl --model my-org/my-model
    larf-curate preview data.jsonl --profile profile/ --row 7 --columns user=q,assistant=a
    larf-curate preview selection/ --row 0
    """
    from larf_curate.scoring.preview import PreviewRows, as_index, count_rows, preview_row

    rows = PreviewRows.open(data, row=as_index(row) or 0, split=split, config=config, revision=revision)
    columns = columns_to_read(rows.rows.column_names, columns, side) or (dict(rows.columns) if rows.columns else None)
    source = _model(profile_name, model, chat_template, template_name, trust_remote_code)
    renderer = _renderer(rows, columns, source, profile_name, model, trust_remote_code)
    with _collected_warnings() as warnings:
        counts = count_rows(rows, renderer)
        shown = preview_row(rows, rows.find(row), renderer)
    if as_json:
        view = {**shown.as_json(), "max_length": renderer.max_length, "counts": asdict(counts)}
        echo_json({**view, "warnings": warnings})
        return
    _echo_row(shown, renderer.max_length)
    _echo_counts(counts)
    for warning in warnings:
        click.echo(visible(f"Warning: {warning}"))


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect what the renderer tells, but for what the template leaves out and columns, which the counts name."""
    logger = logging.getLogger("larf_curate.conversation.chat_template")
    found: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if not any(text in record.msg for text in ("looks like part of", "the chat template leaves out")):
            found.append(record.getMessage())
        return False

    logger.addFilter(collect)
    try:
        yield found
    finally:
        logger.removeFilter(collect)


def _model(
    profile_name: str | None,
    model: str | None,
    chat_template: Path | None,
    template_name: str | None,
    trust_remote_code: bool,
) -> "ModelSource | None":
    """The model to read rows with if there is no profile; None with one."""
    from larf_curate.models.source import ModelSource, identify

    if model and not profile_name:
        return ModelSource(
            model_id=identify(model),
            chat_template=chat_template.read_text(encoding="utf-8") if chat_template else None,
            template_name=template_name,
            trust_remote_code=trust_remote_code,
        )
    if chat_template or template_name:
        raise click.UsageError("--chat-template and --template-name are for --model without --profile")
    return None


def _renderer(
    rows: "PreviewRows",
    columns: dict[str, str] | None,
    source: "ModelSource | None",
    profile_name: str | None,
    model: str | None,
    trust_remote_code: bool,
) -> "Renderer":
    """The renderer of the given model, else of the given profile, else of the profile that scored the rows."""
    from larf_curate.models.loading import load_renderer
    from larf_curate.profile import SafetyProfile
    from larf_curate.profile.cache import profile_of
    from larf_curate.profile.rendering import profile_renderer

    if source:
        return load_renderer(source, columns=columns)
    given = SafetyProfile.from_pretrained(profile_name, trust_remote_code=trust_remote_code) if profile_name else None
    profile = profile_of(rows.manifest, given)
    if profile is None:
        raise click.UsageError("say which model reads the rows: --profile PROFILE, or --model MODEL")
    return profile_renderer(profile, columns=columns, model=model)


def _echo_row(shown: "RowPreview", max_length: int) -> None:
    """Print the row's status and, if it can be rendered, its tokens; else the reason and the row itself."""
    from rich.console import Console
    from rich.text import Text

    from larf_curate.cli.token_view import escaped, legend, token_text

    console, view = Console(highlight=False), shown.inspection
    title = Text(f"Row {shown.row}: {view.rendered.status}", "bold")
    if view.rendered.tokens is None:
        console.print(title, soft_wrap=True)
        console.print(escaped(view.rendered.reason), soft_wrap=True)
        console.print(escaped(repr(dict(shown.source))[:SHOWN_CHARACTERS], "dim"), soft_wrap=True)
        return
    tokens = shown.tokens()
    answers = counted(len(view.turns), "answer")
    console.print(
        title + Text(f" · {counted(len(tokens), 'token')}, {sum(shown.learned()):,} of them learned in {answers}")
    )
    if unread := sum(not token.read for token in tokens):
        is_cut = view.rendered.status == "truncated"
        why = f"the row is cut to {max_length:,} tokens" if is_cut else "behind the last answer"
        console.print(f"{counted(unread, 'token')} not read: {why}", soft_wrap=True)
    console.print()
    console.print(token_text(tokens), soft_wrap=True)
    console.print()
    console.print(legend(tokens))
    console.print()


def _echo_counts(counts: "RowCounts") -> None:
    title = "First row" if counts.rows == 1 else f"First {counts.rows:,} rows"
    lines = [(found.status, f"{found.rows:,}", found.first_row, found.reason) for found in counts.statuses]
    echo_table(title, ("status", "rows", "first row", "reason"), lines, limit=SHOWN_COUNTS)
    if counts.median_tokens is not None:
        click.echo(f"Tokens of a row: median {counts.median_tokens:,.0f}, most {counts.max_tokens:,}")
    click.echo(visible(f"Columns that are read: {', '.join(counts.columns)}"))
    if counts.unused_columns:
        names = ", ".join(counts.unused_columns)
        click.echo(visible(f"Columns that look like part of a conversation and are not read: {names} (see --columns)"))
    if counts.left_out:
        click.echo(visible(f"The chat template leaves out: {'; '.join(counts.left_out)}"))
