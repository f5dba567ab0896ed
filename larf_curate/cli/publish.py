"""``larf-curate publish``: publish the kept rows to the Hub or to a folder."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from larf_curate.cli.options import EXISTING_FOLDER, no_verify_option
from larf_curate.cli.output import echo_json, echo_table, json_option, visible
from larf_curate.errors import InputError, PublishError

if TYPE_CHECKING:
    from larf_curate.publish import Publication
    from larf_curate.publish.shards import Columns

CARD_LINES = 40  # of the card in a dry run


def _read_destination(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Click callback: check that a text names a Hub dataset or a folder, whether or not that exists."""
    from larf_curate.publish import check_destination  # datasets takes a second to import: not for --help

    try:
        check_destination(value)
    except PublishError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    return value


def _read_ref(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Click callback: check that a branch or tag can have a name."""
    from larf_curate.publish.hub_errors import check_ref_name  # huggingface_hub takes time to import

    if value is not None:
        try:
            check_ref_name(value)
        except InputError as error:
            raise click.BadParameter(str(error), ctx, param) from error
    return value


@click.command()
@click.argument("decisions", type=EXISTING_FOLDER)
@click.option(
    "--to",
    required=True,
    metavar="ORG/NAME|FOLDER",
    callback=_read_destination,
    help="Hub dataset, or a folder that begins with ./ or /.",
)
@click.option(
    "--columns",
    type=click.Choice(["source", "scores", "all"]),
    default="scores",
    show_default=True,
    help="Columns of the source alone, with row id, score and decision, or with all larf_* columns.",
)
@click.option(
    "--include-removed-text", is_flag=True, help="Publish the texts of rows that are not published as data, too."
)
@click.option("--public", is_flag=True, help="Create a new repository as public.  [default: private]")
@click.option(
    "--branch", callback=_read_ref, help="Branch to publish to, created from main if needed.  [default: main]"
)
@click.option("--tag", callback=_read_ref, help="Name of a new tag for the published commit.")
@click.option("--create-pr", is_flag=True, help="Open, or update, a pull request instead of committing.")
@click.option("--replace", is_flag=True, help="Delete data at the destination that larf-curate did not publish.")
@click.option(
    "--dry-run", is_flag=True, help="Publish nothing; show the files, the counts and the beginning of the card."
)
@click.option("--diff", is_flag=True, help="Publish nothing; count the rows that would be added, removed and changed.")
@no_verify_option
@json_option
def publish(
    decisions: Path | str,
    to: str,
    columns: "Columns",
    include_removed_text: bool,
    public: bool,
    branch: str | None,
    tag: str | None,
    create_pr: bool,
    replace: bool,
    dry_run: bool,
    diff: bool,
    as_json: bool,
) -> None:
    """Publish the kept rows to the Hub or to a folder.

    They are published in one commit, together with a dataset card and provenance.json. DECISIONS is the folder that
    `review pull` wrote. One that `select` wrote works too: then the rows that were not flagged are published, and the
    card states that no person reviewed the others. All other rows become the configuration `removed`: score, reason,
    decision and nearest exemplar, without their texts.

    The token comes from `hf auth login` or HF_TOKEN. Publishing the same decisions again changes nothing.

    \b
    larf-curate publish decisions/ --to my-org/curated --dry-run
    larf-curate publish decisions/ --to my-org/curated --diff
    larf-curate publish decisions/ --to my-org/curated --tag v1
    larf-curate publish decisions/ --to ./curated
    """
    from larf_curate.publish import publish as publish_rows  # datasets takes a second to import: not for --help

    publication = publish_rows(
        decisions,
        to,
        columns=columns,
        include_removed_text=include_removed_text,
        private=not public,
        branch=branch,
        tag=tag,
        create_pr=create_pr,
        replace=replace,
        dry_run=dry_run,
        diff=diff,
    )
    if as_json:
        echo_json(asdict(publication))
        return
    files = [(file.path, f"{file.bytes:,}", file.sha256[:12]) for file in publication.files]
    echo_table("Files", ("path", "bytes", "sha256"), files)
    echo_table("Rows", ("", "rows"), [(name, f"{count:,}") for name, count in publication.counts.items()])
    if dry_run:
        click.echo(visible("\n".join(publication.card.splitlines()[:CARD_LINES])) + "\n")
    if shown := publication.diff:
        rows = [(name, f"{getattr(shown, name):,}") for name in ("added", "removed", "changed", "unchanged")]
        echo_table("Changes", (f"by {shown.by}", "rows"), rows)
    for line in _remarks(publication, public=public):
        click.echo(visible(line))
    click.echo(visible(_outcome(publication.changed, publication.dry_run, publication.pr_url or publication.url)))


def _remarks(publication: "Publication", *, public: bool) -> Iterator[str]:
    """What a person should know of the destination, a line each."""
    would = publication.dry_run
    yield from (f"{'would delete' if would else 'deleted'}: {path}" for path in publication.deleted)
    done = "would replace" if would else "replaced"
    yield from (f"{done} data that larf-curate did not publish: {path}" for path in publication.replaced)
    yield from (f"note: stays beside the published rows: {path}" for path in publication.beside)
    yield from (f"note: {note}" for note in publication.notes)
    if publication.private is False and not public:
        yield "note: this repository is already public; anyone can read these rows"
    if publication.private and public and not publication.created:
        yield "note: this repository exists and stays private; it can be made public on its settings page"
    if publication.tag:
        yield f"tag: {publication.tag}"


def _outcome(changed: bool, dry_run: bool, url: str) -> str:
    """The last line of output: what was done, and where."""
    if not changed:
        return f"nothing to do: {url} already has exactly this content"
    return f"{'dry run, nothing written: would publish to' if dry_run else 'published:'} {url}"
