"""``larf-curate diagnose``: what a profile's score means, and when it means something else than safety."""

from pathlib import Path

import click

from larf_curate.cli.options import EXISTING_FOLDER, device_option
from larf_curate.cli.output import echo_json, json_option, visible


@click.command()
@click.argument("profile_name", metavar="PROFILE")
@click.argument("scored", metavar="[SCORED]", type=EXISTING_FOLDER, required=False)
@click.option("--references", help="The profile's references, to judge their words: a file, a folder or a Hub id.")
@click.option("--unsafe", help="Its unsafe references, where they came as two files; together with --safe.")
@click.option("--safe", help="Its safe references, where they came as two files; together with --unsafe.")
@click.option("--neutral", help="Its neutral rows: a file, folder or Hub id.")
@click.option("--float32", is_flag=True, help="Load the model in float32 too, and compare the ranks.")
@click.option("--model", help="Where the model lies now, if not where the profile was built; for --float32.")
@device_option
@json_option
def diagnose(
    profile_name: str,
    scored: Path | None,
    references: str | None,
    unsafe: str | None,
    safe: str | None,
    neutral: str | None,
    float32: bool,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Judge PROFILE by its own references, left out in turn, and by the rows of SCORED, which score wrote.

    Warns in plain words, for example where the score follows the length of rows.

    \b
    larf-curate diagnose profile/
    larf-curate diagnose profile/ scored/ --json
    larf-curate diagnose profile/ --unsafe unsafe.jsonl --safe safe.jsonl
    """
    from larf_curate.data.references import ReferenceSet
    from larf_curate.diagnosis import diagnose as judge

    if bool(unsafe) != bool(safe):
        raise click.UsageError("--unsafe and --safe go together")
    if references and unsafe:
        raise click.UsageError("give --references, or --unsafe and --safe")
    refs = ReferenceSet.load(references) if references else None
    refs = ReferenceSet.from_sides(unsafe, safe) if unsafe and safe else refs
    found = judge(profile_name, scored, references=refs, neutral=neutral, float32=float32, model=model, device=device)
    if as_json:
        echo_json(found.to_json())
        return
    click.echo(visible(str(found)))
