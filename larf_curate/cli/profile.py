"""``larf-curate profile``: what a scoring needs, from a model and references."""

from pathlib import Path
from typing import Literal

import click

from larf_curate.cli.options import FOLDER, device_option, max_length_option, read_layers
from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.models.dtypes import DTYPES, Dtype


def _read_layers(
    ctx: click.Context, param: click.Parameter, value: str
) -> "list[int] | Literal['all', 'auto'] | Path | None":
    """A layer report that exists as its path, anything else as `read_layers` reads it."""
    if value and Path(value).exists():
        return Path(value)
    try:
        return read_layers(ctx, param, value)
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}, auto, or what the layers command wrote; got {value}") from None


@click.command()
@click.argument("model")
@click.option("-o", "--output", metavar="PROFILE", type=FOLDER, required=True, help="Folder to write.")
@click.option(
    "--layers",
    default="auto",
    show_default=True,
    callback=_read_layers,
    help="0-based decoder blocks, as in 9,14; all; auto: three of the middle half, by held-out references and by what "
    "refusals depend on; or a folder or layers.json of the layers command, to go by that instead.",
)
@click.option(
    "--references",
    default="builtin",
    show_default=True,
    help="Pairs of an unsafe and a safe answer: builtin, a file, a folder or a Hub dataset id.",
)
@click.option(
    "--match-lengths/--whole",
    "match_lengths",
    default=None,
    help="Cut reference answers of over 1.5 times their counterpart's tokens, or leave them.  [default: cut, but for "
    "--signal larf]",
)
@click.option("--unsafe", help="Unsafe references alone, a file of conversations; together with --safe.")
@click.option("--safe", help="Safe references alone, a file of conversations; together with --unsafe.")
@click.option(
    "--neutral", default="builtin", show_default=True, help="Ordinary rows: builtin, a file, folder or Hub id."
)
@click.option(
    "--signal",
    default="combined",
    show_default=True,
    help="Signal that gives larf_score; larf is the published one. Experimental: logistic, larf_whitened.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Reference pairs that count in the LARF score.  [default: all]"
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="auto is bfloat16 where the hardware computes in it, float32 elsewhere.",
)
@click.option("--revision", help="Commit, tag or branch of a Hub model.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a Jinja chat template to use instead of the model's own.",
)
@max_length_option
@device_option
@click.option("--trust-remote-code", is_flag=True, help="Let code from the model's repository run.")
@json_option
def profile(
    model: str,
    output: Path,
    layers: "list[int] | Literal['all', 'auto'] | Path",
    references: str,
    match_lengths: bool | None,
    unsafe: str | None,
    safe: str | None,
    neutral: str,
    signal: str,
    top_k: int | None,
    dtype: Dtype,
    revision: str | None,
    chat_template: Path | None,
    max_length: int,
    device: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Compute the reference states of MODEL, a folder or a Hub id, and save them as a safety profile.

    \b
    larf-curate profile HuggingFaceTB/SmolLM2-135M-Instruct -o profile/
    larf-curate profile ./model --layers 9 --unsafe unsafe.jsonl --safe safe.jsonl -o profile/
    """
    from larf_curate.data.references import ReferenceSet
    from larf_curate.data.tables import no_progress_bars
    from larf_curate.layers import LayerReport
    from larf_curate.profile import SafetyProfile

    if bool(unsafe) != bool(safe):
        raise click.UsageError("--unsafe and --safe go together")
    if unsafe and references != "builtin":
        raise click.UsageError("wanted --references, or --unsafe and --safe, got all three")
    with no_progress_bars():  # `datasets` shows one for every small file
        refs = ReferenceSet.from_sides(unsafe, safe) if unsafe and safe else ReferenceSet.load(references)
        made = SafetyProfile.build(
            model,
            refs,
            layers=LayerReport.load(layers) if isinstance(layers, Path) else layers,
            match_lengths=match_lengths,
            neutral=neutral,
            signal=signal,
            top_k=top_k,
            dtype=dtype,
            revision=revision,
            max_length=max_length,
            chat_template=chat_template.read_text(encoding="utf-8") if chat_template else None,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    made.save_pretrained(output)
    if as_json:
        echo_json({"profile": str(output), **made.summary()})
        return
    cut = sum(made.references["cut"].values())
    told = f"{len(refs.unsafe)} unsafe, {len(refs.safe)} safe ({refs.source})"
    facts = made.summary() | {
        "references": f"{told}, {cut} cut to the length of their counterparts" if cut else told,
        "layers by": made.choice["by"],
    }
    shown = ("model", "revision", "dtype", "layers", "layers by", "signal", "references", "digest")
    echo_table("Safety profile", ("", ""), [(key, facts[key]) for key in shown if facts[key] is not None])
    click.echo(f"Written to {output}")
