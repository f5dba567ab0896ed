"""``larf-curate profile --add-decisions``: a new version of a profile that learned from decisions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.output import counted, echo_json, echo_next, echo_table
from larf_curate.errors import InputError
from larf_curate.remote import is_url, local_copy, public_name

if TYPE_CHECKING:
    from larf_curate.review.learning.teaching import TaughtProfile

FEW = 20
"""Decided rows below which people are told that little can change."""


def add_version(
    name: str,
    decisions: Sequence[Path | str],
    output: Path | str,
    *,
    model: str | None,
    device: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Add decisions to a profile, save it as a new version, and print what changed."""
    from larf_curate.data.tables import no_progress_bars
    from larf_curate.profile import SafetyProfile
    from larf_curate.review.learning.teaching import add_decisions

    _check_new(output)
    base = SafetyProfile.from_pretrained(name, trust_remote_code=trust_remote_code)
    with no_progress_bars():
        taught = add_decisions(base, decisions, model=model, device=device)
    taught.profile.save_pretrained(output)
    if as_json:
        facts = {"removed": taught.removed, "kept": taught.kept, "left_out": taught.left_out}
        echo_json({"profile": public_name(output), "before": base.digest, **facts, **taught.profile.summary()})
        return
    _echo(taught, base.digest)
    click.echo(f"Written to {public_name(output)}")
    echo_next("score", "DATASET", "--profile", output, "-o", "scored")


def _check_new(output: Path | str) -> None:
    """Refuse to replace a profile: results that it scored could no longer be reproduced.

    Raises:
        InputError: If there is one.
    """
    from larf_curate.profile import CONFIG_FILE

    try:
        folder = local_copy(output) if is_url(output) else Path(output)
    except InputError:  # nothing is there
        return
    if (folder / CONFIG_FILE).exists():
        raise InputError(f"{public_name(output)} has a profile already: write the new version to another folder")


def _echo(taught: "TaughtProfile", before: str) -> None:
    record = taught.profile.decisions or {}
    lines: list[tuple[str, object]] = [("removed rows learned from", taught.removed)]
    lines += [("kept or edited rows", taught.kept)]
    lines += [(f"left out: {why}", count) for why, count in taught.left_out.items()]
    lines += [("digest before", before[:12]), ("digest", taught.profile.digest[:12])]
    echo_table("New version of the profile", ("", ""), lines)
    for line in changes(record["figures"]):
        click.echo(line)
    if not (taught.removed and taught.kept):
        side = "removed" if taught.removed else "kept"
        click.echo(f"Only {side} rows were decided: the other kind is known from the references alone.")
    if taught.removed + taught.kept < FEW:
        click.echo(f"Only {counted(taught.removed + taught.kept, 'row')} among many references: little can change.")
    click.echo("The profile has the hidden states of these rows, not their texts; push_to_hub publishes them.")


def changes(figures: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """What the new version changes, a line for each figure; a decline is told."""
    from larf_curate.profile.decided import FIGURES

    lines = []
    for name, text in FIGURES.items():
        figure = figures[name]
        if figure is None:
            lines.append(f"AUROC of {text}, held out: too few to tell (wanted 10 of each kind).")
            continue
        change = f"{figure['before']:.3f} before, {figure['after']:.3f} after"
        interval = f"change {figure['low']:+.3f} to {figure['high']:+.3f}"
        lines.append(f"AUROC of {text}, held out: {change} ({interval}).{_verdict(figure)}")
    return lines


def _verdict(figure: Mapping[str, Any]) -> str:
    if figure["high"] < 0:
        return " It is WORSE: keep the profile before, or look at the decisions."
    if figure["low"] > 0:
        return " It is better."
    unchanged = figure["low"] == figure["high"] == 0
    return " No change." if unchanged else " That may be chance."
