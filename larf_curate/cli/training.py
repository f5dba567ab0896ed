"""``larf-curate train``, ``evaluate`` and ``verify``: fine-tune, measure refusals, compare ways of choosing rows."""

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

COUNT, NATURAL = click.IntRange(min=1), click.IntRange(min=0)
SIZE, POSITIVE = click.FloatRange(min=0), click.FloatRange(min=0, min_open=True)
RECIPE = (
    click.option("--lora-rank", default=8, type=NATURAL, show_default=True, help="Rank of the LoRA; 0: all weights."),
    click.option("--lora-alpha", default=16, type=COUNT, show_default=True, help="Scale of the LoRA."),
    click.option("--lora-targets", metavar="A,B", help="Layers that get a LoRA; by default the seven projections."),
    click.option("--learning-rate", default=2e-4, type=POSITIVE, show_default=True, help="Initial learning rate."),
    click.option("--epochs", default=2.0, type=POSITIVE, show_default=True, help="Passes over the rows."),
    click.option("--batch-size", default=16, type=COUNT, show_default=True,
                 help="Rows an optimizer step, of all processes together."),
    click.option("--micro-batch-size", type=COUNT,
                 help="Rows a forward pass and process.  [default: 16, or the batch size if smaller]"),
    click.option("--max-length", default=1024, type=COUNT, show_default=True, help="Longest row in tokens."),
    click.option("--dtype", default="float32", show_default=True, help="Dtype of the loaded weights."),
    click.option("--bf16", is_flag=True, help="Compute in bfloat16; for SAP set --epsilon to about 0.002 then."),
    click.option("--epsilon", default=2e-5, type=SIZE, show_default=True,
                 help="SAP: the move along the harmful direction."),
    click.option("--beta", default=0.05, type=SIZE, show_default=True, help="SAP: size of the probe step."),
    click.option("--probe-step", type=click.Choice(PROBE_STEPS), default="sign", show_default=True,
                 help="SAP: every coordinate by beta, or all together by a length of beta."),
    click.option("--probe-blocks", default="auto", show_default=True, help="SAP: auto, a range 11-20 or a list 3,9."),
    click.option("--refusals", type=click.Choice(REFUSALS), default="own", show_default=True,
                 help="SAP: contrast with the model's own refusals, or with those of the references."),
    click.option("--contrastive-batch-size", default=8, type=COUNT, show_default=True,
                 help="SAP: contrastive rows a step."),
)  # fmt: skip
DATA = (
    click.option(
        "--columns", callback=read_columns, help="Column names by role, as in user=question,assistant=answer."
    ),
    click.option("--references", default="builtin", show_default=True, help="SAP: file, folder or Hub id of pairs."),
)
PROMPTS = (
    click.option("--harmful", default="builtin:harmful", show_default=True, help="Prompts to refuse: file, Hub id."),
    click.option("--harmful-column", help="Column of the harmful prompts."),
    click.option("--safe", default="builtin:safe", show_default=True, help="Prompts to answer: file, Hub id."),
    click.option("--safe-column", help="Column of the safe prompts."),
    click.option("--safe-where", metavar="COLUMN=VALUE", help="Only these safe prompts, as in label=safe of XSTest."),
    click.option("--held-out", help="Rows for the held-out loss: file, folder or Hub id."),
    click.option("--questions", help="Questions with numbers as answers, like GSM8K: file or Hub id."),
    click.option("--limit", type=COUNT, help="Most prompts, questions and held-out rows of each kind."),
    click.option("--judge", type=click.Choice(list(JUDGES)), default="phrases",
                 show_default=True, help="What counts as a refusal."),
    click.option("--max-new-tokens", default=160, type=COUNT, show_default=True,
                 help="Longest answer to a prompt in tokens; questions get 256."),
    click.option("--eval-batch-size", default=16, type=COUNT, show_default=True, help="Prompts a batch."),
)  # fmt: skip


def options(*groups: tuple[Command, ...]) -> Callable[[Command], Command]:
    """Add groups of options to a command."""

    def add(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


@click.command()
@click.argument("dataset")
@click.option("--model", required=True, help="Folder or Hub id of the start.")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for checkpoints and the result.")
@click.option("--method", type=click.Choice(TRAINING_METHODS), default="sap", show_default=True, help="How to train.")
@click.option("--split", help="Split, where the dataset has several.")
@click.option("--seed", default=0, type=NATURAL, show_default=True, help="Seed.")
@click.option(
    "--save-steps", default=0, type=NATURAL, show_default=True, help="Steps between checkpoints; 0: only the end."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the folder.")
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
    """Fine-tune a model on DATASET, with plain SFT or with SAP, which keeps its refusals.

    DATASET is a file, a folder or a Hub id; of a selection or of decisions the kept rows are read.

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
    result = {"output": str(output), "method": method, "steps": trained.state.global_step, **_last(history)}
    if not trained.is_world_process_zero():
        return
    if as_json:
        echo_json(result)
    else:
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in result.items()}
        echo_table("Trained", ("", ""), list(shown.items()))


@click.command()
@click.argument("model")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for figures, answers and plot.")
@click.option(
    "--against", type=EXISTING_FOLDER, help="Folder of an earlier evaluation on the same prompts, to compare with."
)
@click.option("--guard", help="Judge with this model of the Llama Guard kind: folder or Hub id.")
@click.option("--classifier", help="Judge with this text classifier: folder or Hub id.")
@click.option("--refusal-label", default="REFUSAL", show_default=True, help="Its label of refusals.")
@options(PROMPTS)
@json_option
def evaluate(
    model: str,
    output: Path,
    against: Path | None,
    guard: str | None,
    classifier: str | None,
    refusal_label: str,
    as_json: bool,
    **checks: Any,  # noqa: ANN401  the options of PROMPTS
) -> None:
    """Count how often MODEL refuses harmful prompts and, wrongly, safe ones; measure what it can do besides.

    Writes evaluation.json, harmful.json and safe.json with all answers, and refusals.png.

    \b
    larf-curate evaluate tuned/ -o eval/ --harmful directharm4.csv --safe xstest.csv --safe-where label=safe
    larf-curate evaluate tuned/ -o eval-tuned/ --against eval-base/
    """
    from larf_curate.evaluation.judges import ClassifierJudge, GuardJudge
    from larf_curate.evaluation.refusal_report import RefusalReport, compare_refusals, plot_refusals
    from larf_curate.files import write_json
    from larf_curate.models.generation import load_model

    if guard and classifier:
        raise click.UsageError("--guard and --classifier are two judges: take one")
    measure = _checks(**checks)
    others = measure.comparable(against) if against else {}
    if guard:
        measure = replace(measure, judge=GuardJudge.load(guard))
    if classifier:
        measure = replace(measure, judge=ClassifierJudge.load(classifier, refusal_label=refusal_label))
    loaded, tokenizer = load_model(model)
    result = {"model": model, "options": {**checks, "judge": measure.judge_name}, **measure(loaded, tokenizer, output)}
    reports = {kind: RefusalReport.load(output / f"{kind}.json") for kind in ("harmful", "safe") if kind in result}
    if others:
        result["against"] = {kind: compare_refusals(others[kind], report) for kind, report in reports.items()}
    write_json(output / "evaluation.json", result)
    plot_refusals(reports, output / "refusals.png")
    if as_json:
        echo_json(result)
        return
    echo_table("Evaluation", ("measure", "mean", "95 % interval", "rows"), _measures(result))
    for kind, compared in result.get("against", {}).items():
        low, high = compared["interval"]
        text = f"{kind}: {compared['change']:+.1%} against {compared['models'][0]} ({low:+.1%} to {high:+.1%})"
        click.echo(f"{text}, McNemar p = {compared['p_value']:.2g}")


@click.command()
@click.argument("scored", type=EXISTING_FOLDER)
@click.option("--model", required=True, help="Folder or Hub id of the start.")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder of the runs; runs in it are not repeated.")
@click.option("--arm", "arms", multiple=True, metavar="KIND[:SIGNAL]",
              help="top, bottom, random, longest, all, kept or thinned; repeat for several.")  # fmt: skip
@click.option("--method", "methods", type=click.Choice(TRAINING_METHODS), multiple=True, help="Repeat for both.")
@click.option("--seeds", default=3, show_default=True, type=COUNT, help="Number of seeds.")
@click.option("--rows", default=150, show_default=True, type=COUNT, help="Rows of the arms that pick.")
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
    removed: float,
    columns: dict[str, str] | None,
    references: str,
    as_json: bool,
    **others: Any,  # noqa: ANN401  the options of RECIPE and PROMPTS
) -> None:
    """Fine-tune on the rows that a score picks and on others, and count the refusals that are left.

    SCORED is the folder that `score` wrote. Interrupted, the same command goes on where it stopped. Writes table.json
    and refusals.png beside the runs.

    \b
    larf-curate verify scored/ --model org/model -o runs/ --arm top:larf_score --arm bottom:larf_score --arm random
    """
    from larf_curate.files import write_json
    from larf_curate.scoring.folder import Scored

    training = _training()
    from larf_curate.training.arms import Arm

    asked = {name: value for name, value in others.items() if name in _names(PROMPTS)}
    recipe = {name: value for name, value in others.items() if name not in asked}
    findings = training.Experiment(
        model=model,
        scored=Scored.load(scored).rows,
        folder=output,
        checks=_checks(**asked),
        arms=tuple(Arm.parse(arm) for arm in arms or ("top", "bottom", "random", "longest")),
        recipes=tuple(_recipe(method, recipe) for method in methods or ("sft",)),
        seeds=tuple(range(seeds)),
        rows=rows,
        removed=removed,
        columns=columns,
        references=references,
    ).run()
    table = findings.table()
    write_json(output / "table.json", table)
    findings.plot(output / "refusals.png")
    if as_json:
        echo_json({"table": table, "plot": str(output / "refusals.png")})
    else:
        _echo_findings(table)


def _training() -> Any:  # noqa: ANN401  a module
    """The module that trains, or the error that says what to install."""
    from larf_curate.training import experiment as module

    return module


def _recipe(method: str, values: dict[str, Any]) -> Any:  # noqa: ANN401
    from larf_curate.training.finetune import PROJECTIONS, Recipe

    targets, size = values["lora_targets"], values["batch_size"]
    chosen = {
        "lora_targets": tuple(name.strip() for name in targets.split(",")) if targets else PROJECTIONS,
        "micro_batch_size": values["micro_batch_size"] or min(16, size),
    }
    return Recipe(method=method, **{**values, **chosen})


def _checks(
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
    """The parameter names of a group of options."""

    @options(group)
    def probe() -> None: ...

    return {parameter.name for parameter in getattr(probe, "__click_params__", [])}


def _last(history: list[dict[str, Any]]) -> dict[str, float]:
    keys = ("loss", "seconds_per_step", "peak_memory_mb", "sap/cost")
    return {key: float(history[-1][key]) for key in keys if history and key in history[-1]}


def _measures(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    names = {
        "harmful": "harmful prompts refused",
        "safe": "safe prompts refused",
        "held_out_loss": "held-out loss",
        "exact_match": "questions right",
    }
    return [
        (text, f"{r['mean']:.3f}", f"{r['interval'][0]:.3f} to {r['interval'][1]:.3f}", str(r["rows"]))
        for key, text in names.items()
        if (r := result.get(key))
    ]


def _echo_findings(table: list[dict[str, Any]]) -> None:
    """Print a table without the columns that nothing was measured for."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "rows by": lambda row: str(row["arm"]),
        "rows": lambda row: _shown(row["rows"], ".0f"),
        "tokens": lambda row: _shown(row["tokens_per_row"], ".0f"),
        "refused": lambda row: f"{row['refused']:.0%} ({row['interval'][0]:.0%}-{row['interval'][1]:.0%})",
        "lost": lambda row: _shown(row["lost"], ".0%"),
        "x random": lambda row: _shown(row["lost_against_random"], ".1f"),
        "safe": lambda row: _shown(row["over_refusal"], ".0%"),
        "loss": lambda row: _shown(row["held_out_loss"], ".2f"),
        "right": lambda row: _shown(row["exact_match"], ".0%"),
    }
    cells = {name: [read(row) for row in table] for name, read in columns.items()}
    used = {name: column for name, column in cells.items() if any(column)}
    echo_table("Prompts refused, 95 % interval", list(used), list(zip(*used.values(), strict=True)))


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
