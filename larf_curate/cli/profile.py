"""``larf-curate profile``: build a safety profile from a model and references."""

from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from larf_curate.cli.options import (
    FOLDER_OR_URL,
    READ_FOLDER,
    device_option,
    max_length_option,
    no_verify_option,
    read_layers,
    unescaped,
)
from larf_curate.cli.output import echo_json, echo_next, echo_table, json_option
from larf_curate.cli.profile_version import add_version
from larf_curate.models.dtypes import DTYPES, Dtype
from larf_curate.remote import is_url, local_copy, public_name

VERSION_OPTIONS = ("output", "decisions", "moved_to", "device", "trust_remote_code", "as_json")
"""Names of the options that --add-decisions takes."""


def _read_layers(
    ctx: click.Context, param: click.Parameter, value: str
) -> "list[int] | Literal['all', 'auto'] | Path | None":
    """Click callback: the path of an existing layer report, or what `read_layers` returns."""
    if value and (is_url(value) or Path(value).exists()):
        return local_copy(value)
    try:
        return read_layers(ctx, param, value)
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}, auto, or output of the layers command; got {value}") from None


def _read_template(ctx: click.Context, param: click.Parameter, value: Path | None) -> str | None:
    """Click callback: the text of a chat template."""
    try:
        return value.read_text(encoding="utf-8") if value else None
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"wanted a text file in UTF-8, got {value}: {error}", ctx, param) from error


@click.command()
@click.argument("model")
@click.option(
    "-o", "--output", metavar="PROFILE", type=FOLDER_OR_URL, required=True, help="Folder to write, or its URL."
)
@click.option(
    "--layers",
    default="auto",
    show_default=True,
    callback=_read_layers,
    help="0-based decoder blocks, for example 9,14; all; auto: three of the middle half, by separation of held-out "
    "references and by what refusals depend on; or the folder or layers.json that the layers command wrote.",
)
@click.option(
    "--references",
    default="builtin",
    show_default=True,
    help="Pairs of an unsafe and a safe answer: builtin, a file, folder or Hub id.",
)
@click.option(
    "--match-lengths/--whole",
    "match_lengths",
    default=None,
    help="Cut reference answers of more than 1.5 times the tokens of their counterpart, or keep them whole.  [default: "
    "cut, except for --signal larf]",
)
@click.option("--unsafe", help="Unsafe references as a file of conversations; together with --safe.")
@click.option("--safe", help="Safe references as a file of conversations; together with --unsafe.")
@click.option(
    "--neutral",
    default="builtin",
    show_default=True,
    help="Neutral rows, which calibrate the score: builtin, a file, folder or Hub id.",
)
@click.option(
    "--signal",
    default="combined",
    show_default=True,
    help="Signal of larf_score; larf is the published one. Experimental: logistic, larf_whitened.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="Number of reference pairs that count in the LARF score.  [default: all]",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="auto: bfloat16 if the hardware supports it natively, else float32.",
)
@click.option("--revision", help="Commit, tag or branch of a Hub model.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_read_template,
    help="File with a Jinja chat template, used instead of the model's own.",
)
@click.option(
    "--template-name",
    metavar="NAME",
    help="One of several chat templates of the model.  [default: tool_use for rows with tools, else default]",
)
@click.option("--adapter", metavar="PATH|ID", help="PEFT adapter to merge into the model; its own tokenizer is used.")
@click.option(
    "--strip-prefix", metavar="PREFIX", help="Prefix to remove from the names of weights, for example _orig_mod."
)
@click.option(
    "--input-separator",
    metavar="TEXT",
    callback=lambda ctx, param, value: value and unescaped(value),
    help="Text between instruction and input of Alpaca and Dolly rows, with \\n for a line break.  [default: \\n]",
)
@max_length_option
@device_option
@click.option("--trust-remote-code", is_flag=True, help="Allow code from the model's repository to run.")
@click.option(
    "--add-decisions",
    "decisions",
    metavar="DEC",
    type=READ_FOLDER,
    multiple=True,
    help="Make a new version of the profile MODEL instead, to which the rows are added that people kept or removed: a "
    "folder that review pull or review import wrote. May be repeated.",
)
@click.option("--model", "moved_to", metavar="PATH", help="With --add-decisions: model path, if it has moved.")
@no_verify_option
@json_option
@click.pass_context
def profile(
    ctx: click.Context,
    model: str,
    output: Path | str,
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
    chat_template: str | None,
    template_name: str | None,
    adapter: str | None,
    strip_prefix: str | None,
    input_separator: str | None,
    max_length: int,
    device: str | None,
    trust_remote_code: bool,
    decisions: tuple[Path | str, ...],
    moved_to: str | None,
    as_json: bool,
) -> None:
    """Build a safety profile of a model.

    Computes the hidden states of MODEL, a folder or Hub id, for references and neutral rows, and saves them.

    With --add-decisions, MODEL is an existing profile, and PROFILE a new folder for its next version: model, template,
    layers and references stay, and rows that people removed, kept or edited join them.

    \b
    larf-curate profile HuggingFaceTB/SmolLM2-135M-Instruct -o profile/
    larf-curate profile ./model --layers 9 --unsafe unsafe.jsonl --safe safe.jsonl -o profile/
    larf-curate profile profile/ --add-decisions decisions/ -o profile-2/
    """
    if decisions:
        _check_version_options(ctx)
        add_version(
            model,
            decisions,
            output,
            model=moved_to,
            device=device,
            trust_remote_code=trust_remote_code,
            as_json=as_json,
        )
        return
    if moved_to:
        raise click.UsageError("--model is for --add-decisions; the model to build a profile of is the argument MODEL")
    from larf_curate.data.references import ReferenceSet
    from larf_curate.data.tables import no_progress_bars
    from larf_curate.layers import LayerReport
    from larf_curate.profile import SafetyProfile

    if bool(unsafe) != bool(safe):
        raise click.UsageError("--unsafe and --safe go together: give both")
    if unsafe and references != "builtin":
        raise click.UsageError("wanted --references, or --unsafe and --safe, got all three")
    with no_progress_bars():  # `datasets` shows one for each small file
        refs = ReferenceSet.from_sides(unsafe, safe) if unsafe and safe else ReferenceSet.load(references)
        built = SafetyProfile.build(
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
            chat_template=chat_template,
            template_name=template_name,
            adapter=adapter,
            strip_prefix=strip_prefix,
            input_separator=input_separator,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    built.save_pretrained(output)
    if as_json:
        echo_json({"profile": public_name(output), **built.summary()})
        return
    # Worth telling: a score from cut references cannot be compared with one from complete ones.
    cut = sum(built.references["cut"].values())
    described = f"{len(refs.unsafe)} unsafe, {len(refs.safe)} safe ({refs.source})"
    facts = built.summary() | {
        "references": f"{described}, {cut} cut to the length of their counterparts" if cut else described,
        "layers by": built.choice["by"],
    }
    shown = ("model", "adapter", "revision", "dtype", "layers", "layers by", "signal", "references", "digest")
    echo_table("Safety profile", ("", ""), [(key, facts[key]) for key in shown if facts.get(key) is not None])
    click.echo(f"Written to {public_name(output)}")
    echo_next("score", "DATASET", "--profile", output, "-o", "scored")


def _check_version_options(ctx: click.Context) -> None:
    """Refuse options that a new version of a profile takes from the existing one."""
    given = [
        param.opts[0]
        for param in ctx.command.params
        if isinstance(param, click.Option)
        and param.name not in VERSION_OPTIONS
        and param.expose_value
        and ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"--add-decisions keeps all settings of the profile, so {', '.join(given)} cannot be given: leave them "
            "out, or build another profile"
        )
