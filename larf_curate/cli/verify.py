"""``larf-curate verify``: compare fine-tuning on chosen and on control rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from larf_curate.cli.interruption import resumable
from larf_curate.cli.options import EXISTING_FOLDER, FOLDER
from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.cli.training_options import (
    DATA,
    POSITIVE_INT,
    PROMPTS,
    RECIPE,
    check_sap_options,
    evaluation_suite,
    formatted,
    make_recipe,
    option_names,
    options,
    training_module,
)
from larf_curate.training.choices import TRAINING_METHODS


@click.command()
@click.argument("scored", type=EXISTING_FOLDER)
@click.option("--model", required=True, help="Folder or Hub id of the model to fine-tune.")
@click.option(
    "-o", "--output", required=True, type=FOLDER, help="Folder of the runs; complete runs in it are not repeated."
)
@click.option("--arm", "arms", multiple=True, metavar="KIND[:SIGNAL]",
              help="top, bottom, random, longest, all, kept or thinned; repeatable.")  # fmt: skip
@click.option(
    "--method",
    "methods",
    type=click.Choice(TRAINING_METHODS),
    multiple=True,
    help="Training method; repeat for both.  [default: sft]",
)
@click.option("--seeds", default=3, show_default=True, type=POSITIVE_INT, help="Number of seeds.")
@click.option(
    "--rows",
    default=150,
    show_default=True,
    type=POSITIVE_INT,
    help="Number of rows of the arms top, bottom, random and longest.",
)
@click.option(
    "--quantiles", type=click.IntRange(min=3), help="Train on each quantile of a ranking, such as 5, instead of --arm."
)
@click.option(
    "--signal",
    "signals",
    multiple=True,
    help="Signal that ranks the rows for --quantiles; repeatable.  [default: larf_score]",
)
@click.option(
    "--length-matched", is_flag=True, help="Rank within strata of length, so that quantiles have equal lengths."
)
@click.option("--removed", default=0.1, type=click.FloatRange(0, 1, max_open=True), show_default=True,
              help="Share of rows that kept and thinned leave out.")  # fmt: skip
@options(RECIPE, DATA, PROMPTS)
@json_option
def verify(
    scored: Path | str,
    model: str,
    output: Path,
    arms: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: int,
    rows: int,
    quantiles: int | None,
    signals: tuple[str, ...],
    length_matched: bool,
    removed: float,
    columns: dict[str, str] | None,
    references: str,
    as_json: bool,
    **others: Any,  # noqa: ANN401  the options of RECIPE and PROMPTS
) -> None:
    """Compare fine-tuning on chosen and on control rows.

    Counts the refusals that are left after fine-tuning on rows that a score picks and on others. SCORED is the folder
    that `score` wrote. If interrupted, the same command resumes. Writes table.json and refusals.png next to the runs.

    \b
    larf-curate verify scored/ --model org/model -o runs/ --arm top:larf_score --arm bottom:larf_score --arm random
    larf-curate verify scored/ --model org/model -o fifths/ --quantiles 5 --signal larf_score --signal harmful
    """
    check_sap_options(methods)
    from larf_curate.conversation.schemas import with_separator
    from larf_curate.files import write_json
    from larf_curate.scoring.folder import Scored

    training, data = (
        training_module(),
        Scored.load(scored),
    )  # before what follows, which needs the extra that it asks for
    from larf_curate.training.arms import Arm, quantile_arms
    from larf_curate.training.quantiles import quantile_trends

    if quantiles and arms:
        raise click.UsageError("--quantiles cannot be combined with --arm: name arms such as q5of5 there")
    if not quantiles and (signals or length_matched):
        raise click.UsageError("--signal and --length-matched belong to --quantiles: give it, or --arm KIND:SIGNAL")
    chosen = tuple(Arm.parse(arm) for arm in arms or ("top", "bottom", "random", "longest"))
    if quantiles:
        chosen = quantile_arms(quantiles, signals or ("larf_score",), length_matched=length_matched)
    checks = {name: value for name, value in others.items() if name in option_names(PROMPTS)}
    recipe = {name: value for name, value in others.items() if name not in checks}
    experiment = training.Experiment(
        model=model,
        scored=data.rows,
        folder=output,
        checks=evaluation_suite(**checks),
        arms=chosen,
        recipes=tuple(make_recipe(method, recipe) for method in methods or ("sft",)),
        seeds=tuple(range(seeds)),
        rows=rows,
        removed=removed,
        columns=with_separator(columns, data.separator),
        references=references,
    )
    with resumable(lambda: f"complete runs stay in {output}", flag=""):
        results = experiment.run()
    table = results.table()
    write_json(output / "table.json", table)
    by_name = {arm.name: arm for arm in results.arms}
    trends = [trend.summary() for trend in quantile_trends(chosen, by_name, methods or ("sft",))] if quantiles else []
    if trends:
        write_json(output / "quantiles.json", trends)
    results.plot(output / "refusals.png")
    if as_json:
        echo_json({"table": table, "plot": str(output / "refusals.png"), **({"quantiles": trends} if trends else {})})
        return
    _echo_results(table)
    if trends:
        _echo_trends(trends, length_matched=length_matched)


def _echo_results(table: list[dict[str, Any]]) -> None:
    """Print the results; columns without any measurement are left out."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "arm": lambda row: str(row["arm"]),
        "rows": lambda row: formatted(row["rows"], ".0f"),
        "tokens per row": lambda row: formatted(row["tokens_per_row"], ".0f"),
        "refused": lambda row: f"{row['refused']:.0%} ({row['interval'][0]:.0%}-{row['interval'][1]:.0%})",
        "points lost": lambda row: formatted(100 * row["lost"], ".0f"),
        "ratio to random": lambda row: formatted(row["lost_against_random"], ".1f"),
        "safe refused": lambda row: formatted(row["over_refusal"], ".0%"),
        "held-out loss": lambda row: formatted(row["held_out_loss"], ".2f"),
        "exact match": lambda row: formatted(row["exact_match"], ".0%"),
    }
    cells = {name: [read(row) for row in table] for name, read in columns.items()}
    used = {name: column for name, column in cells.items() if any(column)}
    echo_table("Harmful prompts refused, with 95 % interval", list(used), list(zip(*used.values(), strict=True)))


def _echo_trends(trends: list[dict[str, Any]], *, length_matched: bool) -> None:
    """Print what the quantiles of each ranking show; refusals from the lowest to the highest scores."""
    rows = [
        (
            trend["signal"],
            " ".join(f"{rate:.0%}" for rate in trend["refused"]),
            f"{trend['monotone_seeds']} of {trend['seeds']}",
            f"{formatted(trend['spearman'], '.2f') or 'undefined'} (p = {trend['p_value']:.2g})",
            f"{100 * trend['gap']:.0f} ({100 * trend['gap_interval'][0]:.0f} to {100 * trend['gap_interval'][1]:.0f})",
        )
        for trend in trends
    ]
    columns = ("signal", "refused, low to high", "monotone seeds", "Spearman", "gap (points)")
    echo_table("Quantiles", columns, rows)
    for trend in trends:
        if not trend["equal_tokens"]:
            tokens = ", ".join(f"{count:,.0f}" for count in trend["tokens"])
            advice = "use more rows, of similar length" if length_matched else "use --length-matched"
            click.echo(f"Warning: the quantiles of {trend['signal']} differ in tokens ({tokens}): {advice}.")
