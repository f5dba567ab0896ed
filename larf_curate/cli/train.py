"""``larf-curate train``: fine-tune a model with SFT or SAP."""

from pathlib import Path
from typing import Any

import click

from larf_curate.cli.interruption import resumable
from larf_curate.cli.options import FOLDER
from larf_curate.cli.output import echo_json, echo_next, echo_table, json_option
from larf_curate.cli.training_options import (
    DATA,
    NATURAL,
    RECIPE,
    check_sap_options,
    load_rows,
    make_recipe,
    options,
    training_module,
)
from larf_curate.training.choices import TRAINING_METHODS

LABELS = {
    "output": "written to",
    "method": "method",
    "rows": "rows",
    "steps": "steps",
    "loss": "loss of the last step",
    "seconds_per_step": "seconds of the last step",
    "peak_memory_mb": "peak memory, MB",
    "sap/cost": "last step, times its plain part",
}
"""What the printed figures are."""
NOT_SAVED = "nothing was saved, since there is no checkpoint yet: --save-steps 50 writes one every 50 steps"
"""What becomes of a training run that is interrupted early."""


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
    check_sap_options([method])
    fine_tune = training_module().fine_tune
    rows = load_rows(dataset, split)
    with resumable(lambda: _saved(output), otherwise=NOT_SAVED):
        trained = fine_tune(
            model,
            rows,
            output,
            recipe=make_recipe(method, recipe),
            seed=seed,
            references=references,
            columns=columns,
            save_steps=save_steps,
            resume=resume,
        )
    history = [entry for entry in trained.state.log_history if "seconds_per_step" in entry]
    done = {"rows": len(trained.train_dataset), "steps": trained.state.global_step}
    result = {"output": str(output), "method": method, **done, **_last_metrics(history)}
    if not trained.is_world_process_zero():  # under DDP, one process prints for all
        return
    if as_json:
        echo_json(result)
    else:
        echo_table("Trained", ("", ""), [(LABELS[key], _formatted(value)) for key, value in result.items()])
        echo_next("evaluate", output, "-o", "evaluation")


def _saved(output: Path) -> str:
    """The last checkpoint of an interrupted run, in words; empty if there is none."""
    from larf_curate.training.checkpoints import last_complete

    checkpoint = last_complete(output)
    return f"the last checkpoint is {checkpoint}" if checkpoint else ""


def _formatted(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of the last log entry that are worth printing."""
    return {key: float(history[-1][key]) for key in LABELS if history and key in history[-1]}
