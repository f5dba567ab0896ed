"""``larf-curate scan``: from a dataset and a model to a report, with one command."""

import webbrowser
from pathlib import Path

import click

from larf_curate.cli.options import FOLDER, FiniteRange, columns_to_read, device_option, source_options
from larf_curate.cli.output import echo_json, echo_next, echo_table, json_option

EXPLAINED_ROWS = 10
"""Number of flagged rows whose tokens the report shades."""


@click.command()
@click.argument("names", metavar="DATASET...", nargs=-1, required=True)
@click.option("--model", metavar="MODEL", required=True, help="Chat model to be fine-tuned: folder or Hub id.")
@click.option("-o", "--output", type=FOLDER, default="larf-scan", show_default=True, help="Folder for all results.")
@click.option(
    "--references",
    default="builtin",
    show_default=True,
    help="Pairs of an unsafe and a safe answer: builtin, a file, folder or Hub id.",
)
@click.option(
    "--top-ratio",
    type=FiniteRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of the scored rows to flag.",
)
@source_options
@click.option("--no-browser", is_flag=True, help="Do not open the report in a browser.")
@device_option
@json_option
def scan(
    names: tuple[str, ...],
    model: str,
    output: Path,
    references: str,
    top_ratio: float,
    split: str | None,
    config: str | None,
    revision: str | None,
    columns: dict[str, str] | None,
    side: str | None,
    limit: int | None,
    no_browser: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Score a dataset, flag rows and write a report.

    Does what profile, score, select and report do with their default settings. The profile is built once per model and
    references; a scan that was interrupted continues, and one that has finished can be repeated with another
    --top-ratio without scoring again.

    \b
    larf-curate scan rows.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct
    larf-curate scan tatsu-lab/alpaca --model ./model --limit 1000 -o scan/
    """
    from larf_curate.data.references import ReferenceSet
    from larf_curate.data.sources import open_source

    # Before what imports torch, which takes seconds: the input may be wrong.
    source = open_source(names, split=split, config=config, revision=revision, limit=limit)
    from larf_curate.data.tables import no_progress_bars
    from larf_curate.profile.built import built_profile
    from larf_curate.report import write_report
    from larf_curate.scoring.exemplars import ExemplarIndex
    from larf_curate.scoring.explanation import explain_flagged
    from larf_curate.scoring.folder import Scored
    from larf_curate.scoring.run import score_source
    from larf_curate.scoring.scorer import LarfScorer
    from larf_curate.scoring.selection import select

    with no_progress_bars():
        profile = built_profile(model, ReferenceSet.load(references), device=device)
    scorer = LarfScorer(
        profile,
        exemplars=ExemplarIndex.of_profile(profile),
        keep_states=True,
        columns=columns_to_read(source.pieces[0].rows.column_names, columns, side),
        device=device,
    )
    score_source(source, scorer, output / "scored", resume=True)
    profile.save_pretrained(output / "profile")
    scored = Scored.load(output / "scored")
    with no_progress_bars():
        selection = select(scored.rows, top_ratio=top_ratio, source=scored.source_id, scored=scored.manifest)
        selection = explain_flagged(selection, profile, rows=EXPLAINED_ROWS, device=device)
        selection.save(output / "selection")
        report = write_report(output / "selection", output / "report.html", profile=profile)
    summary = selection.summary()
    if as_json:
        echo_json({"report": str(report), "selection": str(output / "selection"), **summary})
        return
    echo_table("Scan", ("", "rows"), [(name, f"{count:,}") for name, count in summary["counts"].items()])
    click.echo(f"Report:    {report}\nSelection: {output / 'selection'}")
    echo_next("review", "push", output / "selection")
    if not no_browser:
        webbrowser.open(Path(report).resolve().as_uri())
