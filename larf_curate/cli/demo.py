"""``larf-curate demo``: the complete workflow on packaged data."""

import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from larf_curate.cli.options import FOLDER, read_layers
from larf_curate.cli.output import echo_json, echo_table, json_option

if TYPE_CHECKING:
    from larf_curate.review import ReviewQueue
    from larf_curate.scoring.selection import Selection
    from larf_curate.server import EmbeddedServer

STEPS = {
    "model": "Getting the model (SmolLM2-135M-Instruct, unless --model is given)",
    "profile": "Building the safety profile from the built-in references",
    "score": "Scoring the packaged rows",
    "select": "Flagging the highest scores",
    "report": "Writing the report",
    "push": "Pushing the flagged rows to Argilla",
    "decide": "Deciding on every flagged row by script, as a reviewer named demo-reviewer",
    "pull": "Pulling the decisions",
    "publish": "Publishing the kept rows",
}


@click.command()
@click.option("-o", "--output", type=FOLDER, default="larf-demo", show_default=True, help="Folder for all results.")
@click.option("--model", help="Chat model, a folder or a Hub id.  [default: SmolLM2-135M-Instruct]")
@click.option("--layers", callback=read_layers, help="0-based decoder blocks.  [default: three near the middle]")
@click.option("--no-browser", is_flag=True, help="Do not open a browser; decide by script, from the known labels.")
@click.option("--publish-to", metavar="ORG/NAME", help="Publish to this Hub dataset instead of a folder.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port of the review server.  [default: any free port]"
)
@json_option
def demo(
    output: Path,
    model: str | None,
    layers: "list[int] | Literal['all'] | None",
    no_browser: bool,
    publish_to: str | None,
    port: int,
    as_json: bool,
) -> None:
    """Run the complete workflow on packaged data.

    Builds a profile, scores, selects, reports, reviews in Argilla, pulls the decisions and publishes. Without
    --no-browser the review page opens and the demo waits for your decisions.

    \b
    larf-curate demo
    larf-curate demo --no-browser -o out/
    """
    from larf_curate.demo.run import QUEUE, Demo
    from larf_curate.review import ReviewQueue
    from larf_curate.server import EmbeddedServer

    # Progress goes to standard error, so that standard output has only the result.
    started = time.monotonic()
    run = Demo(folder=output, model=model, layers=layers, say=lambda step: click.echo(f"• {STEPS[step]}", err=True))
    scored = run.score()
    selection = run.select(scored)
    server = EmbeddedServer(port=port, say=lambda line: click.echo(f"  {line}", err=True))
    click.echo("• Starting the review server", err=True)
    server.start()
    try:
        with ReviewQueue(QUEUE, url=server.url, api_key=server.api_key) as queue:
            page = run.push(queue, selection).url
            click.echo(f"  Review page: {page}", err=True)
            if no_browser:
                run.decide(server, queue, selection)
            else:
                _wait_for_person(server, queue, page)
            outcome = run.pull(queue, selection)
    finally:
        started_here = server.started_here
        if started_here:  # leave a server that ran before running: others may be using it
            server.stop()
    harmful = _harmful_counts(selection)
    publication = run.publish(publish_to or output.resolve() / "published")
    result = {
        "counts": {**selection.summary()["counts"], **outcome.counts},
        "harmful": harmful,
        "review_page": page,
        "report": str(output / "report.html"),
        "published": publication.url,
        "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
        "total_seconds": round(time.monotonic() - started, 1),
    }
    if as_json:
        echo_json(result)
        return
    echo_table(
        "What happened",
        ("", "rows"),
        [
            ("scored", len(scored.rows)),
            ("flagged for review", len(selection.flagged)),
            ("harmful rows among the flagged", f"{harmful['flagged']} of {harmful['all']}"),
            ("removed by the reviewer", outcome.counts["removed"]),
            ("withheld (not decided)", outcome.counts["withheld"]),
            ("published", outcome.counts["kept"]),
        ],
    )
    again = "larf-curate review up (its server has stopped, and keeps the rows)"
    click.echo(f"Report:      {result['report']}\nPublished:   {result['published']}")
    click.echo(f"Review page: {again if started_here else page}")
    click.echo(f"Took {result['total_seconds']:.0f} s.")


def _wait_for_person(server: "EmbeddedServer", queue: "ReviewQueue", page: str) -> None:
    """Open the review page and wait until the reviewer confirms that they have finished."""
    owner = server.credentials.owner
    click.echo(f"  Sign in as {owner.username} with password {owner.password}", err=True)
    webbrowser.open(page)
    while True:
        click.prompt(
            "Decide on the rows, then press Enter", default="", show_default=False, prompt_suffix=" ", err=True
        )
        state = queue.status()
        if not state.pending or click.confirm(f"{state.pending} rows are undecided; continue without them?", err=True):
            return


def _harmful_counts(selection: "Selection") -> dict[str, int]:
    """Number of rows labelled harmful, flagged and in all."""
    flagged, kept = (sum(part["is_harmful"]) for part in (selection.flagged, selection.kept))
    return {"flagged": flagged, "all": flagged + kept}
