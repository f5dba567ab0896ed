"""``larf-curate train``, ``evaluate`` and ``verify``: fine-tune, measure refusals, and compare choices of rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from larf_curate.cli.options import EXISTING_FOLDER, FOLDER, read_columns
from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.evaluation.judges import JUDGES
from larf_curate.training.choices import PROBE_STEPS, REFUSALS, TRAINING_METHODS

Command = Callable[..., Any]

POSITIVE_INT, NATURAL = click.IntRange(min=1), click.IntRange(min=0)
NON_NEGATIVE, POSITIVE = click.FloatRange(min=0), click.FloatRange(min=0, min_open=True)
# Groups of options that several commands share; the commands receive each group as keyword arguments.
RECIPE = (
    click.option("--lora-rank", default=8, type=NATURAL, show_default=True,
                 help="Rank of the LoRA; 0 trains all weights."),
    click.option("--lora-alpha", default=16, type=POSITIVE_INT, show_default=True, help="Scale of the LoRA."),
    click.option("--lora-targets", metavar="A,B",
                 help="Layers with a LoRA.  [default: the seven projections of a block]"),
    click.option("--learning-rate", default=2e-4, type=POSITIVE, show_default=True, help="Initial learning rate."),
    click.option("--epochs", default=2.0, type=POSITIVE, show_default=True, help="Number of passes over the rows."),
    click.option("--batch-size", default=16, type=POSITIVE_INT, show_default=True,
                 help="Rows per optimizer step, over all processes."),
    click.option("--micro-batch-size", type=POSITIVE_INT,
                 help="Rows per forward pass and process.  [default: 16, or the batch size if smaller]"),
    click.option("--max-length", default=1024, type=POSITIVE_INT, show_default=True, help="Longest row in tokens."),
    click.option("--dtype", default="float32", show_default=True, help="Dtype of the loaded weights."),
    click.option("--bf16", is_flag=True, help="Compute in bfloat16; for SAP, then set --epsilon to about 0.002."),
    click.option("--epsilon", default=2e-5, type=NON_NEGATIVE, show_default=True,
                 help="SAP: distance of the move in the harmful direction, in units of the weights' norm."),
    click.option("--beta", default=0.05, type=NON_NEGATIVE, show_default=True, help="SAP: size of the probe step."),
    click.option("--probe-step", type=click.Choice(PROBE_STEPS), default="sign", show_default=True,
                 help="SAP: move every coordinate by beta, or all probes together by a norm of beta."),
    click.option("--probe-blocks", default="auto", show_default=True,
                 help="SAP: blocks with a probe: auto, a range 11-20 or a list 3,9."),
    click.option("--refusals", type=click.Choice(REFUSALS), default="own", show_default=True,
                 help="SAP: contrast with the model's own refusals, or with those given in the references."),
    click.option("--contrastive-batch-size", default=8, type=POSITIVE_INT, show_default=True,
                 help="SAP: contrastive rows per step and process."),
)  # fmt: skip
DATA = (
    click.option(
        "--columns", callback=read_columns, help="Column names by role, for example user=question,assistant=answer."
    ),
    click.option(
        "--references",
        default="builtin",
        show_default=True,
        help="SAP: pairs of unsafe and safe answers: builtin, a file, folder or Hub id.",
    ),
)
PROMPTS = (
    click.option("--harmful", default="builtin:harmful", show_default=True,
                 help="Prompts that should be refused: file or Hub id."),
    click.option("--harmful-column", help="Column of the harmful prompts."),
    click.option("--safe", default="builtin:safe", show_default=True,
                 help="Prompts that should be answered: file or Hub id."),
    click.option("--safe-column", help="Column of the safe prompts."),
    click.option("--safe-where", metavar="COLUMN=VALUE",
                 help="Use only these safe prompts, for example label=safe of XSTest."),
    click.option("--held-out", help="Rows for the held-out loss: file, folder or Hub id."),
    click.option("--questions", help="Questions with numeric answers, like GSM8K: file or Hub id."),
    click.option("--limit", type=POSITIVE_INT,
                 help="Maximum number of prompts, questions and held-out rows of each kind."),
    click.option("--judge", type=click.Choice(list(JUDGES)), default="phrases",
                 show_default=True, help="What counts as a refusal."),
    click.option("--max-new-tokens", default=160, type=POSITIVE_INT, show_default=True,
                 help="Longest answer to a prompt in tokens; questions get 256."),
    click.option("--eval-batch-size", default=16, type=POSITIVE_INT, show_default=True, help="Prompts per batch."),
)  # fmt: skip


def options(*groups: tuple[Command, ...]) -> Callable[[Command], Command]:
    """Decorator that adds groups of options to a command, in their order."""

    def add(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


@click.command()
@click.argument("dataset")
@click.option("--model", required=True, help="Folder or Hub id of the model to fine-tune.")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for checkpoints and the trained model.")
@click.option(
    "--method", type=click.Choice(TRAINING_METHODS), default="sap", show_default=True, help="Training method."
)
@click.option("--split", help="Split, if the dataset has several.")
@click.option("--seed", default=0, type=NATURAL, show_default=True, help="Random seed.")
@click.option("--save-steps", default=0, type=NATURAL, show_default=True, help="Steps between checkpoints; 0 for none.")
@click.option("--resume", is_flag=True, help="Resume from the last complete checkpoint in the folder.")
@options(RECIPE, DATA)
@json_option
def train(
    dataset: str,
    model: str,
    output: Path,
    method: str,
    seed: int,
    save_steps: int,
    resume: bool,
    split: str | None,
    columns: dict[str, str] | None,
    references: str,
    as_json: bool,
    **recipe: Any,  # noqa: ANN401  the options of RECIPE
) -> None:
    """Fine-tune a model with SFT or SAP.

    SFT is plain supervised fine-tuning; SAP (Safety-Aware Probing) preserves the model's refusals. DATASET is a file, a
    folder or a Hub id. From a selection or decisions folder, the kept rows are read.

    \b
    larf-curate train decisions/ --model org/model -o tuned/ --method sap
    """
    fine_tune = _training().fine_tune
    rows = _load(dataset, split)
    trained = fine_tune(
        model,
        rows,
        output,
        recipe=_recipe(method, recipe),
        seed=seed,
        references=references,
        columns=columns,
        save_steps=save_steps,
        resume=resume,
    )
    history = [entry for entry in trained.state.log_history if "seconds_per_step" in entry]
    result = {"output": str(output), "method": method, "steps": trained.state.global_step, **_last_metrics(history)}
    if not trained.is_world_process_zero():  # under DDP, one process prints for all
        return
    if as_json:
        echo_json(result)
    else:
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in result.items()}
        echo_table("Trained", ("", ""), list(shown.items()))


@click.command()
@click.argument("model")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for figures, answers and the plot.")
@click.option(
    "--against", type=EXISTING_FOLDER, help="Folder of an earlier evaluation on the same prompts, for comparison."
)
@click.option("--guard", help="Judge with this guard model, like Llama Guard: folder or Hub id.")
@click.option(
    "--second-judge",
    "further",
    multiple=True,
    metavar="JUDGE",
    help="Judge the same answers by guard:MODEL, model:MODEL, endpoint:MODEL@URL (key in OPENAI_API_KEY), or a name as "
    "of --judge, and report the agreement; repeatable.",
)
@click.option("--base", help="Model before fine-tuning, under which the perplexity of answers is computed.")
@click.option("--classifier", help="Judge with this text classifier: folder or Hub id.")
@click.option("--refusal-label", default="REFUSAL", show_default=True, help="The classifier's label for refusals.")
@options(PROMPTS)
@json_option
def evaluate(
    model: str,
    output: Path,
    against: Path | None,
    guard: str | None,
    further: tuple[str, ...],
    base: str | None,
    classifier: str | None,
    refusal_label: str,
    as_json: bool,
    **checks: Any,  # noqa: ANN401  the options of PROMPTS
) -> None:
    """Measure how often a model refuses.

    Counts how often MODEL refuses harmful prompts and, wrongly, safe ones; optionally computes its held-out loss and
    exact match. Writes evaluation.json, harmful.json and safe.json with all answers, and refusals.png.

    \b
    larf-curate evaluate tuned/ -o eval/ --harmful directharm4.csv --safe xstest.csv --safe-where label=safe
    larf-curate evaluate tuned/ -o eval-tuned/ --against eval-base/
    """
    from larf_curate.evaluation.agreement import compare_judges
    from larf_curate.evaluation.judges import ClassifierJudge, GuardJudge, named_judge
    from larf_curate.evaluation.refusal_report import RefusalReport, compare_refusals, plot_refusals
    from larf_curate.files import write_json
    from larf_curate.models.generation import load_model

    if guard and classifier:
        raise click.UsageError("--guard and --classifier are two judges: use one")
    suite = _evaluation_suite(**checks)
    earlier = suite.comparable(against) if against else {}
    if guard:
        suite = replace(suite, judge=GuardJudge.load(guard))
    if classifier:
        suite = replace(suite, judge=ClassifierJudge.load(classifier, refusal_label=refusal_label))
    if suite.judge_name in further or len(set(further)) < len(further):
        raise click.UsageError("wanted each judge once: --second-judge adds to the first")
    judges = {name: named_judge(name) for name in further}
    # After all inputs are checked, since loading takes longest.
    loaded, tokenizer = load_model(model)
    result = {"model": model, "options": {**checks, "judge": suite.judge_name}, **suite(loaded, tokenizer, output)}
    reports = {kind: RefusalReport.load(output / f"{kind}.json") for kind in ("harmful", "safe") if kind in result}
    if earlier:
        result["against"] = {kind: compare_refusals(earlier[kind], report) for kind, report in reports.items()}
    del loaded  # free its memory for the base model
    result["incoherence"] = _incoherence(reports, base)
    compared = {k: compare_judges(r, judges, earlier=earlier.get(k)) for k, r in reports.items()} if judges else {}
    if compared:
        result["judges"] = {kind: comparison.summary() for kind, comparison in compared.items()}
    write_json(output / "evaluation.json", result)
    plot_refusals(reports, output / "refusals.png")
    if as_json:
        echo_json(result)
        return
    echo_table("Evaluation", ("metric", "mean", "95 % interval", "rows"), _metric_rows(result))
    for kind, change in result.get("against", {}).items():
        low, high = change["interval"]
        text = f"{kind}: {change['change']:+.1%} against {change['models'][0]} ({low:+.1%} to {high:+.1%})"
        click.echo(f"{text}, McNemar p = {change['p_value']:.2g}")
    for kind, shares in result["incoherence"].items():
        click.echo(f"{kind}: {shares['incoherent']:.1%} of the answers are incoherent")
    _echo_judges(result.get("judges", {}))


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
    scored: Path,
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
    from larf_curate.conversation.schemas import with_separator
    from larf_curate.files import write_json
    from larf_curate.scoring.folder import Scored

    training, data = _training(), Scored.load(scored)  # before what follows, which needs the extra that it asks for
    from larf_curate.training.arms import Arm, quantile_arms
    from larf_curate.training.quantiles import quantile_trends

    if quantiles and arms:
        raise click.UsageError("--quantiles cannot be combined with --arm: name arms such as q5of5 there")
    if not quantiles and (signals or length_matched):
        raise click.UsageError("--signal and --length-matched belong to --quantiles: give it, or --arm KIND:SIGNAL")
    chosen = tuple(Arm.parse(arm) for arm in arms or ("top", "bottom", "random", "longest"))
    if quantiles:
        chosen = quantile_arms(quantiles, signals or ("larf_score",), length_matched=length_matched)
    checks = {name: value for name, value in others.items() if name in _names(PROMPTS)}
    recipe = {name: value for name, value in others.items() if name not in checks}
    results = training.Experiment(
        model=model,
        scored=data.rows,
        folder=output,
        checks=_evaluation_suite(**checks),
        arms=chosen,
        recipes=tuple(_recipe(method, recipe) for method in methods or ("sft",)),
        seeds=tuple(range(seeds)),
        rows=rows,
        removed=removed,
        columns=with_separator(columns, data.separator),
        references=references,
    ).run()
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
        _echo_trends(trends)


def _incoherence(reports: dict[str, Any], base: str | None) -> dict[str, dict[str, float | None]]:
    """Shares of incoherent answers by kind of prompt."""
    from larf_curate.evaluation.coherence import incoherence, perplexities
    from larf_curate.models.generation import load_model

    loaded = load_model(base) if base else None
    return {
        kind: incoherence(report.answers, perplexities(*loaded, report.prompts, report.answers) if loaded else None)
        for kind, report in reports.items()
    }


def _echo_judges(judges: dict[str, Any]) -> None:
    """Print each judge's rate and the agreement, with warnings."""
    for kind, found in judges.items():
        rates = [
            (name, "" if row["rate"] is None else f"{row['rate']:.1%}", str(row["unjudged"]))
            for name, row in found["judges"].items()
        ]
        echo_table(f"Judges of the {kind} prompts", ("judge", "refused", "not judged"), rates)
        for pair in found["kappa"]:
            click.echo(f"kappa of {' and '.join(pair['judges'])}: {_shown(pair['kappa'], '.2f') or 'undefined'}")
        for warning in found["warnings"]:
            click.echo(f"Warning: {warning}")


def _training() -> Any:  # noqa: ANN401  a module
    """The module that trains; importing it raises an error that says what to install if the extra is missing."""
    from larf_curate.training import experiment as module

    return module


def _recipe(method: str, values: dict[str, Any]) -> Any:  # noqa: ANN401
    """A recipe from the values of the RECIPE options."""
    from larf_curate.training.finetune import PROJECTIONS, Recipe

    targets, size = values["lora_targets"], values["batch_size"]
    chosen = {
        "lora_targets": tuple(name.strip() for name in targets.split(",")) if targets else PROJECTIONS,
        "micro_batch_size": values["micro_batch_size"] or min(16, size),
    }
    return Recipe(method=method, **{**values, **chosen})


def _evaluation_suite(
    *,
    harmful: str,
    harmful_column: str | None,
    safe: str,
    safe_column: str | None,
    safe_where: str | None,
    held_out: str | None,
    questions: str | None,
    limit: int | None,
    judge: str,
    max_new_tokens: int,
    eval_batch_size: int,
) -> Any:  # noqa: ANN401
    """An evaluation suite from the values of the PROMPTS options."""
    from larf_curate.data.prompts import load_prompts
    from larf_curate.evaluation.suite import EvaluationSuite
    from larf_curate.evaluation.task_metrics import load_questions

    rows = _load(held_out) if held_out else None
    return EvaluationSuite(
        harmful=tuple(load_prompts(harmful, column=harmful_column, limit=limit)),
        safe=tuple(load_prompts(safe, column=safe_column, where=safe_where, limit=limit)),
        held_out=rows.select(range(min(limit, len(rows)))) if rows is not None and limit else rows,
        questions=tuple(load_questions(questions, limit=limit)) if questions else (),
        judge=judge,
        max_new_tokens=max_new_tokens,
        batch_size=eval_batch_size,
    )


def _load(source: str, split: str | None = None) -> Any:  # noqa: ANN401
    from larf_curate.data.prompts import load_table

    return load_table(source, split=split)


def _names(group: tuple[Command, ...]) -> set[str]:
    """Parameter names of a group of options."""

    @options(group)
    def command() -> None: ...

    return {parameter.name for parameter in getattr(command, "__click_params__", [])}


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of the last log entry that are worth printing."""
    keys = ("loss", "seconds_per_step", "peak_memory_mb", "sap/cost")
    return {key: float(history[-1][key]) for key in keys if history and key in history[-1]}


def _metric_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """One table row per metric that was measured."""
    names = {
        "harmful": "harmful prompts refused",
        "safe": "safe prompts refused",
        "held_out_loss": "held-out loss",
        "exact_match": "questions answered correctly",
    }
    return [
        (text, f"{r['mean']:.3f}", f"{r['interval'][0]:.3f} to {r['interval'][1]:.3f}", str(r["rows"]))
        for key, text in names.items()
        if (r := result.get(key))
    ]


def _echo_results(table: list[dict[str, Any]]) -> None:
    """Print the results; columns without any measurement are left out."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "arm": lambda row: str(row["arm"]),
        "rows": lambda row: _shown(row["rows"], ".0f"),
        "tokens per row": lambda row: _shown(row["tokens_per_row"], ".0f"),
        "refused": lambda row: f"{row['refused']:.0%} ({row['interval'][0]:.0%}-{row['interval'][1]:.0%})",
        "refusals lost": lambda row: _shown(row["lost"], ".0%"),
        "ratio to random": lambda row: _shown(row["lost_against_random"], ".1f"),
        "safe refused": lambda row: _shown(row["over_refusal"], ".0%"),
        "held-out loss": lambda row: _shown(row["held_out_loss"], ".2f"),
        "exact match": lambda row: _shown(row["exact_match"], ".0%"),
    }
    cells = {name: [read(row) for row in table] for name, read in columns.items()}
    used = {name: column for name, column in cells.items() if any(column)}
    echo_table("Harmful prompts refused, with 95 % interval", list(used), list(zip(*used.values(), strict=True)))


def _echo_trends(trends: list[dict[str, Any]]) -> None:
    """Print what the quantiles of each ranking show; refusals from the lowest to the highest scores."""
    rows = [
        (
            trend["signal"],
            " ".join(f"{rate:.0%}" for rate in trend["refused"]),
            f"{trend['monotone_seeds']} of {trend['seeds']}",
            f"{_shown(trend['spearman'], '.2f') or 'undefined'} (p = {trend['p_value']:.2g})",
            f"{100 * trend['gap']:.0f} ({100 * trend['gap_interval'][0]:.0f} to {100 * trend['gap_interval'][1]:.0f})",
        )
        for trend in trends
    ]
    columns = ("signal", "refused, low to high", "monotone seeds", "Spearman", "gap (points)")
    echo_table("Quantiles", columns, rows)
    for trend in trends:
        if not trend["equal_tokens"]:
            tokens = ", ".join(f"{count:,.0f}" for count in trend["tokens"])
            click.echo(
                f"Warning: the quantiles of {trend['signal']} differ in tokens ({tokens}): use --length-matched."
            )


def _shown(value: float | None, form: str) -> str:
    """A formatted value; empty if it was not measured, so that unused columns can be dropped."""
    return "" if value is None else format(value, form)
