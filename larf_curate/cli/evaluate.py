"""``larf-curate evaluate``: measure how often a model refuses."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.options import EXISTING_FOLDER, FOLDER
from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.cli.training_options import PROMPTS, evaluation_suite, formatted, options
from larf_curate.errors import InputError
from larf_curate.files import read_json
from larf_curate.records import check_seal, write_sealed
from larf_curate.remote import local_copy, public_name

if TYPE_CHECKING:
    from larf_curate.evaluation.judges import OpenJudge
    from larf_curate.evaluation.refusal_report import RefusalReport

EVALUATION, PLOT = "evaluation.json", "refusals.png"
FILES = (EVALUATION, "harmful.json", "safe.json", PLOT)
"""Names of the files that are written."""
INPUTS = ("harmful", "safe", "held_out", "questions")
"""Options that name files."""


@click.command()
@click.argument("model")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for figures, answers and the plot.")
@click.option(
    "--against", type=EXISTING_FOLDER, help="Folder of an earlier evaluation on the same prompts, for comparison."
)
@click.option(
    "--guard",
    help="Judge answers to harmful prompts with this guard model, as guard:MODEL does: folder or Hub id; safe prompts, "
    "of which a guard calls every harmless answer safe, are judged by phrases.",
)
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
    against: Path | str | None,
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
    from larf_curate.evaluation.judges import ClassifierJudge, named_judge
    from larf_curate.evaluation.refusal_report import RefusalReport, compare_refusals, plot_refusals
    from larf_curate.models.generation import load_model

    if guard and classifier:
        raise click.UsageError("--guard and --classifier are two judges: use one")
    suite = evaluation_suite(**checks)
    _check_whole(suite.until_decided, guard, classifier, further, base)
    against = local_copy(against) if against else None
    earlier = suite.comparable(against) if against else {}
    _check_whole(bool(further) and not all(report.has_whole_answers for report in earlier.values()), further)
    _check_same_length(against, suite.max_new_tokens)
    _check_output(output, [checks[name] for name in INPUTS], against)
    suite.check_output(output)
    if guard:
        suite = replace(suite, judge=named_judge(f"guard:{guard}"))
    if classifier:
        suite = replace(suite, judge=ClassifierJudge.load(classifier, refusal_label=refusal_label))
    suite.check_judges(earlier)
    if suite.judge_name in further or len(set(further)) < len(further):
        raise click.UsageError("wanted each judge once: --second-judge adds to the first")
    judges = {name: named_judge(name) for name in further}
    # After all inputs are checked, since loading takes longest.
    loaded, tokenizer = load_model(model)
    recorded = {name: public_name(value) if isinstance(value, str) else value for name, value in checks.items()}
    result = {
        "model": model,
        "options": {**recorded, "judge": suite.judge_name},
        **suite(loaded, tokenizer, output, name=model),
    }
    reports = {kind: RefusalReport.load(output / f"{kind}.json") for kind in ("harmful", "safe") if kind in result}
    if earlier:
        result["against"] = {kind: compare_refusals(earlier[kind], report) for kind, report in reports.items()}
    del loaded  # free its memory for the base model
    result["incoherence"] = _incoherence(reports, base)
    write_sealed(output / EVALUATION, {"kind": "evaluation", **result})  # a further judge may fail
    if compared := _judged(reports, judges, earlier):
        result["judges"] = compared
    write_sealed(output / EVALUATION, {"kind": "evaluation", **result})
    plot_refusals(_bars(earlier, reports), output / PLOT)
    if as_json:
        echo_json(result)
        return
    echo_table("Evaluation", ("metric", "mean", "95 % interval", "rows"), _metric_rows(result))
    for kind, change in result.get("against", {}).items():
        points, low, high = (f"{100 * value:+.1f}" for value in (change["change"], *change["interval"]))
        text = f"{kind}: {points} points against {change['models'][0]} ({low} to {high})"
        click.echo(f"{text}, McNemar p = {change['p_value']:.2g}")
    for kind, shares in result["incoherence"].items():
        click.echo(f"{kind}: {shares['incoherent']:.1%} of the answers are incoherent")
    _echo_judges(result.get("judges", {}))
    click.echo(f"Written to {output}")


def _check_whole(until_decided: bool, *readers: object) -> None:
    """Check that nobody reads answers that end where the judge has decided, now or in an earlier evaluation."""
    if until_decided and any(readers):
        raise click.UsageError(
            "--guard, --classifier, --second-judge and --base read complete answers, also those of --against: evaluate "
            "without --until-decided"
        )


def _bars(earlier: dict[str, "RefusalReport"], reports: dict[str, "RefusalReport"]) -> dict[str, "RefusalReport"]:
    """The reports by the label of their bar, with those of the earlier evaluation above each."""
    if not earlier:
        return reports
    pairs = {kind: {"before": earlier[kind], "after": report} for kind, report in reports.items()}
    return {f"{kind}, {when}": report for kind, pair in pairs.items() for when, report in pair.items()}


def _check_output(output: Path, inputs: list[str | None], against: Path | None) -> None:
    """Check that no input is overwritten, and no file that an earlier evaluation has not written."""
    if against and against.resolve() == output.resolve():
        raise InputError(f"{output} has the earlier evaluation to compare with: write to another folder")
    read = {Path(name).resolve() for name in inputs if name}
    for path in (output / name for name in FILES):
        if path.resolve() in read:
            raise InputError(f"{path} is an input, and would be overwritten: write to another folder")
    found = [output / name for name in (EVALUATION, PLOT) if (output / name).exists()]
    if found and not _is_evaluation(output / EVALUATION):
        raise InputError(
            f"{found[0]} is not of larf-curate evaluate, and would be overwritten: write to another folder"
        )


def _check_same_length(against: Path | None, max_new_tokens: int) -> None:
    """Check that answers of an earlier evaluation may be as long: shorter ones can end before a refusal is complete."""
    path = against and against / EVALUATION
    options = read_json(path).get("options", {}) if path and _is_evaluation(path) else {}
    if (theirs := options.get("max_new_tokens", max_new_tokens)) != max_new_tokens:
        raise InputError(
            f"{against} has answers of up to {theirs} tokens, wanted {max_new_tokens}: use --max-new-tokens {theirs}"
        )


def _is_evaluation(path: Path) -> bool:
    """Whether a file is one that this command wrote."""
    try:
        value = read_json(path)
        check_seal(value, path=path, remedy="")
    except (InputError, AttributeError):  # no JSON, or no object
        return False
    return bool(value.get("kind") == "evaluation")


def _incoherence(reports: dict[str, Any], base: str | None) -> dict[str, dict[str, float | None]]:
    """Shares of incoherent answers by kind of prompt."""
    from larf_curate.evaluation.coherence import incoherence, perplexities
    from larf_curate.models.generation import load_model

    loaded = load_model(base) if base else None
    return {
        kind: incoherence(report.answers, perplexities(*loaded, report.prompts, report.answers) if loaded else None)
        for kind, report in reports.items()
        if report.has_whole_answers
    }


def _judged(
    reports: dict[str, "RefusalReport"], judges: dict[str, "OpenJudge"], earlier: dict[str, "RefusalReport"]
) -> dict[str, Any]:
    """Figures of further judges by kind of prompt; guards are not asked about safe prompts (see `GuardJudge`)."""
    from larf_curate.evaluation.agreement import compare_judges
    from larf_curate.evaluation.judges import GuardJudge

    of_refusals = {name: judge for name, judge in judges.items() if not isinstance(judge, GuardJudge)}
    asked = {kind: of_refusals if kind == "safe" else judges for kind in reports}
    return {
        kind: compare_judges(report, asked[kind], earlier=earlier.get(kind)).summary()
        for kind, report in reports.items()
        if asked[kind]
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
            click.echo(f"kappa of {' and '.join(pair['judges'])}: {formatted(pair['kappa'], '.2f') or 'undefined'}")
        for warning in found["warnings"]:
            click.echo(f"Warning: {warning}")


def _metric_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """One table row per metric that was measured."""
    names = {
        "harmful": ("harmful prompts refused", ".1%"),
        "safe": ("safe prompts refused", ".1%"),
        "held_out_loss": ("held-out loss", ".3f"),
        "exact_match": ("questions answered correctly", ".1%"),
    }
    return [
        (text, f"{r['mean']:{form}}", f"{r['interval'][0]:{form}} to {r['interval'][1]:{form}}", str(r["rows"]))
        for key, (text, form) in names.items()
        if (r := result.get(key))
    ]
