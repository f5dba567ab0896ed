"""``larf-curate layers``: find the blocks that a model's refusals depend on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.options import NewPath
from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.conversation.refusals import KEYWORDS
from larf_curate.layers.method import METHOD_NAMES
from larf_curate.models.dtypes import DTYPES

if TYPE_CHECKING:
    from larf_curate.layers import LayerReport

SHOWN = 10  # blocks of the ranking


def _read_numbers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[float] | None:
    """Click callback: parse ``0.7,1.3`` into numbers."""
    try:
        return None if value is None else [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"wanted numbers separated by commas, got {value!r}") from None


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "--output",
    required=True,
    type=NewPath(),
    help="A folder, for layers.json and layers.png, or a .json file; the plot is written next to it.",
)
@click.option(
    "--method",
    type=click.Choice(METHOD_NAMES),
    default="gradient",
    show_default=True,
    help="gradient: fastest. forward: a grid without decoding. sweep: LARF's own method. separation: for models that "
    "never or always refuse.",
)
@click.option(
    "--prompts",
    metavar="FILE|ID",
    default="builtin",
    show_default=True,
    help="Harmless prompts that sound harmful: json, jsonl, csv or parquet file, or Hub dataset id.",
)
@click.option(
    "--references", metavar="FILE|ID", default="builtin", show_default=True, help="Pairs of unsafe and safe answers."
)
@click.option(
    "--alphas",
    callback=_read_numbers,
    help="Scaling factors of blocks, equally many below and above 1.  [default: 0.7,0.8,0.9,1.1,1.2,1.3 for sweep, "
    "else 0.7,1.3]",
)
@click.option(
    "--max-prompts", type=click.IntRange(min=1), help="Maximum number of prompts.  [default: 48 for gradient, else all]"
)
@click.option(
    "--keywords",
    type=click.Choice(list(KEYWORDS)),
    default="default",
    show_default=True,
    help="What counts as a refusal; larf: the LARF authors' four keywords.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Maximum number of layers to recommend."
)
@click.option("--revision", help="Commit, tag or branch of a Hub id.")
@click.option("--device", help="Torch device, such as cpu or cuda:1.  [default: the first available accelerator]")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="auto: bfloat16 if the hardware supports it natively, else float32.",
)
@click.option("--trust-remote-code", is_flag=True, help="Allow code from the model's repository to run.")
@json_option
def layers(model: str, output: Path, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Find the blocks that a model's refusals depend on.

    MODEL is a folder or a Hub id. An interrupted sweep resumes when the same command is run again. The exit code is 1
    if no block stands out from chance.

    \b
    larf-curate layers HuggingFaceTB/SmolLM2-135M-Instruct -o layers/
    """
    from larf_curate.errors import InputError
    from larf_curate.layers import LayerReport, find_safety_layers  # torch takes seconds to import: not for --help
    from larf_curate.layers.report import report_file

    file = report_file(output)
    if file.is_dir():
        raise InputError(f"wanted a file or a new folder for the report, got the folder {file}: give another name")
    if file.exists() and (recorded := LayerReport.load(file).method) != options["method"]:
        raise InputError(f"{file} is a report of the method {recorded}: use another output, or delete it")
    file.parent.mkdir(parents=True, exist_ok=True)  # fail before the work, which may take hours
    report = find_safety_layers(model, checkpoint=file.with_suffix(".cells.jsonl"), **options)
    report.save(file)
    plot = report.plot(file.with_suffix(".png"))
    if as_json:
        echo_json({**_summary(report), "report": str(file), "plot": str(plot)})
    else:
        _echo_report(report)
        click.echo(f"Written to {file} and {plot}")
    if report.advice:
        click.echo(report.advice, err=True)
        raise click.exceptions.Exit(1)


def _summary(report: "LayerReport") -> dict[str, Any]:
    """The report as JSON values."""
    keys = ("method", "model", "layers", "broken", "ranking", "scores", "low", "high", "prompts", "refused", "seconds")
    return {key: getattr(report, key) for key in keys}


def _echo_report(report: "LayerReport") -> None:
    refused = "" if report.refused is None else f", {report.refused} of {report.prompts} prompts refused"
    rows = [
        (
            block,
            f"{report.scores[block]:.3f}",
            f"{report.low[block]:.3f} to {report.high[block]:.3f}",
            "-" if report.neutral_loss[block] is None else f"{report.neutral_loss[block]:+.2f}",
            "broken" if block in report.broken else "recommended" if block in report.layers else "",
        )
        for block in [*report.ranking[: max(SHOWN, len(report.layers))], *report.broken]
    ]
    title = f"{report.model}: {report.method}, {report.seconds:.0f} s{refused}"
    echo_table(title, ("block", "score", "95 % interval", "loss on harmless answers", ""), rows)
    click.echo(f"Recommended layers: {', '.join(map(str, report.layers)) or 'none'}")
