"""``larf-curate publish``: put the kept rows on the Hub or into a folder."""

from dataclasses import asdict

import click

from larf_curate.cli.output import echo_json, echo_table, json_option, visible

CARD_LINES = 40


@click.command()
@click.argument("decisions", type=click.Path(exists=True, file_okay=False))
@click.option("--to", required=True, metavar="ORG/NAME|FOLDER", help="Hub dataset, or a folder beginning with ./ or /.")
@click.option("--public", is_flag=True, help="Make a new repository public; it is private otherwise.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing to main.")
@click.option("--dry-run", is_flag=True, help="Write nothing; show the files, the counts and the head of the card.")
@json_option
def publish(decisions: str, to: str, public: bool, create_pr: bool, dry_run: bool, as_json: bool) -> None:
    """Publish the rows that were kept, in one commit with a card and provenance.json.

    DECISIONS is the folder that `review pull` wrote. One that `select` wrote will do as well: then the rows that were
    not flagged are published, and the card says that no person reviewed the others.

    The token comes from `hf auth login` or HF_TOKEN. Publishing the same decisions again changes nothing.

    \b
    larf-curate publish decisions/ --to my-org/curated --dry-run
    larf-curate publish decisions/ --to my-org/curated
    larf-curate publish decisions/ --to ./curated
    """
    from larf_curate.publish import publish as publish_rows  # datasets takes a second to import: not for --help

    done = publish_rows(decisions, to, private=not public, create_pr=create_pr, dry_run=dry_run)
    if as_json:
        echo_json(asdict(done))
        return
    echo_table("Files", ("path", "bytes", "sha256"), [(f.path, f"{f.bytes:,}", f.sha256) for f in done.files])
    echo_table("Rows", ("", "rows"), [(name, f"{count:,}") for name, count in done.counts.items()])
    if dry_run:
        click.echo(visible("\n".join(done.card.splitlines()[:CARD_LINES])) + "\n")
    for path in done.deleted:
        click.echo(f"{'would delete' if dry_run else 'deleted'}: {visible(path)}")
    if done.private is False and not public:
        click.echo("note: this repository is public already; everybody can read these rows")
    if done.private and public and not done.created:
        click.echo("note: this repository is private and stays so; its settings page can make it public")
    click.echo(visible(_outcome(done.changed, done.dry_run, done.pr_url or done.url)))


def _outcome(changed: bool, dry_run: bool, url: str) -> str:
    """The last line: what happened, and where."""
    if not changed:
        return f"nothing to do: {url} holds exactly this already"
    return f"{'dry run, nothing written: would publish to' if dry_run else 'published:'} {url}"
