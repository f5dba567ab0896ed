"""Options that ``train``, ``evaluate`` and ``verify`` share, and what is made of their values."""

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from larf_curate.cli.options import FiniteRange, read_columns
from larf_curate.evaluation.judges import JUDGES
from larf_curate.training.choices import OPTIMIZERS, PROBE_STEPS, REFUSALS, SAP_FIELDS, TRAINING_DTYPES

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
    click.option("--max-steps", default=0, type=NATURAL, show_default=True,
                 help="Largest number of optimizer steps, for a trial; 0 for no limit."),
    click.option("--batch-size", default=16, type=POSITIVE_INT, show_default=True,
                 help="Rows per optimizer step, over all processes."),
    click.option("--micro-batch-size", type=POSITIVE_INT,
                 help="Rows per forward pass and process.  [default: 16, or on a CPU those of 256 tokens]"),
    click.option("--gradient-checkpointing", is_flag=True,
                 help="Keep fewer states for the backward pass: less memory, up to half more time."),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw_torch_fused", show_default=True,
                 help="Optimizer, by its name in transformers."),
    click.option("--max-length", default=1024, type=POSITIVE_INT, show_default=True, help="Longest row in tokens."),
    click.option("--dtype", type=click.Choice(TRAINING_DTYPES), default="float32", show_default=True,
                 help="Dtype of the loaded weights."),
    click.option("--bf16", is_flag=True,
                 help="Compute in bfloat16; for SAP with probes, then set --epsilon to about 0.002."),
    click.option("--epsilon", default=2e-5, type=NON_NEGATIVE, show_default=True,
                 help="SAP: distance of the move in the harmful direction, in units of the weights' norm."),
    click.option("--beta", default=0.05, type=NON_NEGATIVE, show_default=True, help="SAP: size of the probe step."),
    click.option("--safe-cosine", default=-1.0, type=FiniteRange(-1, 1, max_open=True), show_default=True,
                 help="SAP: turn gradients until their cosine with that of the safety loss is at least this; with "
                 "--beta 0 instead of probes, else beside them. -1, as in the paper, turns none."),
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
    click.option("--until-decided", is_flag=True,
                 help="End each answer once --judge has decided: the same refusal rates in less time, without the "
                 "shares of off-topic and incoherent answers, for which answers must be complete."),
)  # fmt: skip


def options(*groups: tuple[Command, ...]) -> Callable[[Command], Command]:
    """Decorator that adds groups of options to a command, in their order."""

    def add(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


def training_module() -> Any:  # noqa: ANN401  a module
    """The module that trains; importing it raises an error that says what to install if the extra is missing."""
    from larf_curate.training import experiment as module

    return module


def make_recipe(method: str, values: dict[str, Any]) -> Any:  # noqa: ANN401
    """A recipe from the values of the RECIPE options."""
    from larf_curate.training.recipe import PROJECTIONS, Recipe

    targets = values["lora_targets"]
    chosen = {
        "lora_targets": tuple(name.strip() for name in targets.split(",")) if targets else PROJECTIONS,
        "micro_batch_size": values["micro_batch_size"] or 0,
    }
    return Recipe(method=method, **{**values, **chosen})


def check_sap_options(methods: Sequence[str]) -> None:
    """Refuse options of SAP on the command line of a command that does not train with it.

    Raises:
        UsageError: If there are any.
    """
    context = click.get_current_context()
    given = [
        f"--{name.replace('_', '-')}"
        for name in (*SAP_FIELDS, "references")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given and "sap" not in methods:
        raise click.UsageError(f"{', '.join(given)} belong to SAP: add --method sap, or leave them out")


def evaluation_suite(
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
    until_decided: bool,
) -> Any:  # noqa: ANN401
    """An evaluation suite from the values of the PROMPTS options."""
    from larf_curate.data.prompts import load_prompts
    from larf_curate.evaluation.suite import EvaluationSuite
    from larf_curate.evaluation.task_metrics import load_questions

    rows = load_rows(held_out) if held_out else None
    return EvaluationSuite(
        harmful=tuple(load_prompts(harmful, column=harmful_column, limit=limit)),
        safe=tuple(load_prompts(safe, column=safe_column, where=safe_where, limit=limit)),
        held_out=rows.select(range(min(limit, len(rows)))) if rows is not None and limit else rows,
        questions=tuple(load_questions(questions, limit=limit)) if questions else (),
        judge=judge,
        max_new_tokens=max_new_tokens,
        batch_size=eval_batch_size,
        until_decided=until_decided,
    )


def load_rows(source: str, split: str | None = None) -> Any:  # noqa: ANN401
    """The rows of a file, folder or Hub id."""
    from larf_curate.data.prompts import load_table

    return load_table(source, split=split)


def option_names(group: tuple[Command, ...]) -> set[str]:
    """Parameter names of a group of options."""

    @options(group)
    def command() -> None: ...

    return {parameter.name for parameter in getattr(command, "__click_params__", [])}


def formatted(value: float | None, form: str) -> str:
    """A formatted value; empty if it was not measured, so that unused columns can be dropped."""
    return "" if value is None else format(value, form)
