"""``larf-curate score``: score a dataset and write it to a folder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.interruption import resumable
from larf_curate.cli.options import (
    EXISTING_FOLDER,
    FOLDER_OR_URL,
    columns_to_read,
    device_option,
    no_verify_option,
    read_share,
    source_options,
)
from larf_curate.cli.output import counted, echo_json, echo_next, echo_table, json_option

if TYPE_CHECKING:
    from larf_curate.data.sources import Source
    from larf_curate.scoring.scorer import LarfScorer


@click.command()
@click.argument("names", metavar="DATASET...", nargs=-1, required=True)
@click.option(
    "--profile", "profile_name", metavar="PROFILE", required=True, help="Folder or Hub id of the safety profile."
)
@click.option("-o", "--output", metavar="OUT", type=FOLDER_OR_URL, required=True, help="Folder to write, or its URL.")
@source_options
@click.option(
    "--signals",
    help="Signals for larf_signals, separated by commas; also the baselines length and tfidf.  [default: "
    "harmful,erosion,compliance for the default signal, else the profile's own]",
)
@click.option(
    "--neighbors",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Number of nearest exemplars to store as evidence; 0 for none.",
)
@click.option(
    "--exemplars", type=EXISTING_FOLDER, help="Folder of an exemplar index.  [default: the profile's unsafe references]"
)
@click.option(
    "--keep-states/--no-states",
    default=True,
    show_default=True,
    help="Store each row's state, for review and re-ranking.",
)
@click.option(
    "--guard", metavar="MODEL", help="Judge the rows with this guard model too, as a baseline: folder or Hub id."
)
@click.option("--model", help="Model path, if it has moved since the profile was built.")
@click.option("--trust-remote-code", is_flag=True, help="Allow code from the model's repository to run.")
@device_option
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=0),
    default=0,
    help="Maximum number of tokens per forward pass, including padding.  [default: depends on the device]",
)
@click.option(
    "--num-proc",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of processes, each with one GPU.",
)
@click.option(
    "--shard",
    "share",
    metavar="I/N",
    callback=read_share,
    help="Score only the share of process I of N, counted from 0, which share the folder; run once more with --resume "
    "instead to finish.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where to score: processes of this machine, or actors of a Ray cluster.",
)
@click.option("--address", help="Address of a running Ray cluster.  [default: one is started on this machine]")
@click.option("--actors", type=click.IntRange(min=1), help="Number of Ray actors.  [default: as many as fit]")
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(min=0),
    help="GPUs of each Ray actor, such as 0.5.  [default: 1 if the cluster has any]",
)
@click.option("--resume", is_flag=True, help="Resume an interrupted run, and finish what --shard has left.")
@no_verify_option
@json_option
def score(
    names: tuple[str, ...],
    profile_name: str,
    output: Path | str,
    split: str | None,
    config: str | None,
    revision: str | None,
    columns: dict[str, str] | None,
    side: str | None,
    limit: int | None,
    signals: str | None,
    neighbors: int,
    exemplars: Path | str | None,
    keep_states: bool,
    guard: str | None,
    model: str | None,
    trust_remote_code: bool,
    device: str | None,
    batch_tokens: int,
    num_proc: int,
    share: tuple[int, int] | None,
    engine: str,
    address: str | None,
    actors: int | None,
    gpus_per_actor: float | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Score the rows of a dataset.

    DATASET is a Hub id, a folder from save_to_disk, or files, globs and folders of json, jsonl, ndjson, csv, tsv or
    parquet files; text files may be compressed (.gz, .zst). Splits of a folder are those of load_dataset. Files, globs
    and folders may be URLs (s3://, gs://, hf://, https://).

    \b
    larf-curate score tatsu-lab/alpaca --profile profile/ -o scored/
    larf-curate score "data/*.jsonl" --profile profile/ -o scored/ --columns user=q,assistant=a --resume
    larf-curate score a.jsonl b.csv.gz --profile profile/ -o scored/
    larf-curate score data/ --profile profile/ -o scored/ --shard 3/16
    """
    on_ray: dict[str, Any] = {"address": address, "actors": actors, "gpus_per_actor": gpus_per_actor}
    _check_engine(engine, on_ray, num_proc, share)
    from larf_curate.data.sources import open_source

    # Before what imports torch, which takes seconds: the input may be wrong.
    source = open_source(names, split=split, config=config, revision=revision, limit=limit)
    from larf_curate.distributed import score_with_ray
    from larf_curate.profile import SafetyProfile
    from larf_curate.scoring.exemplars import ExemplarIndex
    from larf_curate.scoring.guard import GuardScorer
    from larf_curate.scoring.manifest import guard_statuses
    from larf_curate.scoring.reasons import first_reasons
    from larf_curate.scoring.run import score_share, score_source
    from larf_curate.scoring.scorer import LarfScorer
    from larf_curate.scoring.search import EXACT

    profile = SafetyProfile.from_pretrained(profile_name, trust_remote_code=trust_remote_code)
    index = ExemplarIndex.load(exemplars) if exemplars else ExemplarIndex.of_profile(profile)
    scorer = LarfScorer(
        profile,
        exemplars=index if neighbors else None,
        neighbors=neighbors or 1,
        signals=[name.strip() for name in signals.split(",")] if signals else None,
        keep_states=keep_states,
        columns=columns_to_read(source.pieces[0].rows.column_names, columns, side),
        model=model,
        device=device,
        batch_tokens=batch_tokens,
    )
    judge = GuardScorer(guard, columns=scorer.columns, device=device) if guard else None
    if share:
        with resumable(lambda: f"what was scored stays in {output}"):
            status = score_share(source, scorer, output, index=share[0], count=share[1], num_proc=num_proc, guard=judge)
        _print_share(source.share(*share), share, output, status, as_json=as_json)
        return
    run = partial(score_with_ray, **on_ray) if engine == "ray" else partial(score_source, num_proc=num_proc)
    with resumable(lambda: f"what was scored stays in {output}"):
        manifest = run(source, scorer, output, resume=resume, guard=judge)
    # Files store a status per row but no reason: the first rows without a score are read again for it.
    reasons = first_reasons(source, output, scorer)
    if as_json:
        unscorable = [{"row": row, "reason": reason} for row, reason in reasons]
        echo_json({"scored": str(output), **manifest, "first_unscorable": unscorable, **_search_of(scorer)})
        return
    echo_table("Scored", ("status", "rows"), [(name, f"{count:,}") for name, count in manifest["status"].items()])
    if guard:
        cells = [(name, f"{count:,}") for name, count in guard_statuses(output).items()]
        echo_table(
            "Judged by the guard model; other rows than ok and truncated lack a probability", ("status", "rows"), cells
        )
    if reasons:
        echo_table("First rows without a score", ("row", "reason"), reasons)
    if scorer.exemplars and scorer.exemplars.kind != EXACT:
        click.echo(f"larf_neighbors: approximate search, which finds {scorer.exemplars.recall:.1%} of the nearest 10")
    rows, files = manifest["rows"], len(manifest["shards"])
    click.echo(f"Written to {output}: {counted(rows, 'row')} in {counted(files, 'file')}")
    echo_next("select", output, "--top-ratio", 0.05, "-o", "selection")


def _search_of(scorer: "LarfScorer") -> dict[str, Any]:
    """How the nearest exemplars were found, if they were searched."""
    index = scorer.exemplars
    return {} if index is None else {"exemplar_search": {"kind": index.kind, "recall": index.recall}}


def _check_engine(engine: str, on_ray: Mapping[str, object], num_proc: int, share: tuple[int, int] | None) -> None:
    """Refuse options of the other engine."""
    given = [f"--{name.replace('_', '-')}" for name, value in on_ray.items() if value is not None]
    if engine == "local" and given:
        raise click.UsageError(f"{', '.join(given)} needs --engine ray: give it too")
    if engine == "ray" and (num_proc > 1 or share):
        raise click.UsageError("--num-proc and --shard are for --engine local: use --actors with --engine ray")


def _print_share(
    rows: "Source", share: tuple[int, int], output: Path | str, status: dict[str, int], *, as_json: bool
) -> None:
    """Print what one of several processes has scored."""
    name = "/".join(map(str, share))
    if as_json:
        echo_json(
            {"scored": str(output), "shard": name, "rows": rows.rows, "files": len(rows.pieces), "status": status}
        )
        return
    echo_table(f"Shard {name}", ("status", "rows"), [(key, f"{count:,}") for key, count in status.items()])
    click.echo(f"Written to {output}: {counted(rows.rows, 'row')} in {counted(len(rows.pieces), 'file')}")
    click.echo("When all processes have ended, finish with the same command and --resume instead of --shard")
