"""``larf-curate diagnose``: figures and warnings about what a profile's score measures."""

from pathlib import Path

import click

from larf_curate.cli.options import EXISTING_FOLDER, device_option, no_verify_option
from larf_curate.cli.output import echo_json, json_option, visible


@click.command()
@click.argument("profile_name", metavar="PROFILE")
@click.argument("scored", metavar="[SCORED]", type=EXISTING_FOLDER, required=False)
@click.option("--references", help="The profile's references, for the text-only baselines: a file, folder or Hub id.")
@click.option("--unsafe", help="The unsafe references, if they came as two files; together with --safe.")
@click.option("--safe", help="The safe references, if they came as two files; together with --unsafe.")
@click.option("--neutral", help="The profile's neutral rows: a file, folder or Hub id.")
@click.option("--float32", is_flag=True, help="Also load the model in float32 and compare the rankings.")
@click.option(
    "--against",
    metavar="MODEL",
    help="Another checkpoint of the model, for example a quantised one: compare the rankings of rows of SCORED.",
)
@click.option("--model", help="Model path, if it has moved since the profile was built; for --float32.")
@device_option
@no_verify_option
@json_option
def diagnose(
    profile_name: str,
    scored: Path | str | None,
    references: str | None,
    unsafe: str | None,
    safe: str | None,
    neutral: str | None,
    float32: bool,
    against: str | None,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Evaluate what the score of a profile measures.

    Uses the references of PROFILE, held out by cross-validation, and, if given, the rows of SCORED, which score wrote.
    Prints warnings in plain words, for example if the score follows the length of rows.

    \b
    larf-curate diagnose profile/
    larf-curate diagnose profile/ scored/ --json
    larf-curate diagnose profile/ scored/ --against ./model-4bit
    larf-curate diagnose profile/ --unsafe unsafe.jsonl --safe safe.jsonl
    """
    from larf_curate.data.references import ReferenceSet
    from larf_curate.diagnosis import diagnose as diagnose_profile

    if bool(unsafe) != bool(safe):
        raise click.UsageError("--unsafe and --safe go together: give both")
    if references and unsafe:
        raise click.UsageError("wanted --references, or --unsafe and --safe, got both")
    refs = ReferenceSet.load(references) if references else None
    refs = ReferenceSet.from_sides(unsafe, safe) if unsafe and safe else refs
    diagnosis = diagnose_profile(
        profile_name,
        scored,
        references=refs,
        neutral=neutral,
        float32=float32,
        against=against,
        model=model,
        device=device,
    )
    if as_json:
        echo_json(diagnosis.to_json())
        return
    click.echo(visible(str(diagnosis)))
