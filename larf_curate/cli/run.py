"""``larf-curate run``: all steps that a file of settings asks for, each by the command of its name."""

import io
import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.config_file import Config, arguments, read_config
from larf_curate.cli.output import WITHIN_RUN, echo_json, json_option, visible
from larf_curate.cli.queues import QueueAddress
from larf_curate.cli.review import pull
from larf_curate.cli.review import status as status_command
from larf_curate.cli.sections import UNTIL, read_until
from larf_curate.cli.steps import RECORD, Progress, Step, digests, steps
from larf_curate.errors import InputError

if TYPE_CHECKING:
    from larf_curate.review import QueueStatus

STEPS = ("profile", "score", "select", "report", "review", "pull", "publish")
"""Names of the steps, in order."""
POLL_SECONDS = 15
"""Time between two looks at the queue while waiting for decisions."""


@click.command()
@click.argument(
    "settings", metavar="[FILE]", default="larf.yaml", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--until", type=click.Choice(STEPS), help="Last step to do.  [default: the last one in FILE]")
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on with what an earlier run has left in the output folder, or refuse to.",
)
@click.option("--dry-run", is_flag=True, help="Do nothing; show the steps, as commands, and which are complete.")
@json_option
@click.pass_context
def run(context: click.Context, settings: Path, until: str | None, resume: bool, dry_run: bool, as_json: bool) -> None:
    """Do all steps of a file of settings.

    The steps are profile, score, select, report, review, pull and publish, from a model and a dataset to published
    rows; FILE has their settings, and `larf-curate init` writes one. Steps that are complete, with the same settings,
    are not repeated. While people have rows to decide, the command ends with the link to them; run it again to go on.

    \b
    larf-curate run larf.yaml --dry-run
    larf-curate run larf.yaml --until report
    """
    config = read_config(settings)
    if not resume and (config.output / RECORD).exists():
        raise InputError(f"{config.output} has results of an earlier run: use --resume, or give another output")
    Run(config=config, context=context, as_json=as_json, dry_run=dry_run).do(_chosen(config, until))


class Run:
    """A run of some steps.

    Args:
        config: The settings.
        context: The context of the command.
        as_json: Whether to print one JSON object.
        dry_run: Whether to do nothing.
    """

    def __init__(self, *, config: Config, context: click.Context, as_json: bool, dry_run: bool) -> None:
        self.config = config
        self.context = context
        self.as_json = as_json
        self.dry_run = dry_run
        context.meta[WITHIN_RUN] = True
        self.progress = Progress(folder=config.output)
        self.results: dict[str, dict[str, Any]] = {}
        self.next: str | None = None

    def do(self, chosen: list[Step]) -> None:
        """Do steps that are not complete, until one has to wait for people; print the result.

        Raises:
            InputError: If a step would overwrite results that are costly or people's.
        """
        self._check_dataset(chosen)
        for step in chosen:  # before the first one costs anything
            self.progress.check(step)
        try:
            self._do_each(chosen)
        finally:  # what was done before an error is told, too
            if self.as_json:
                echo_json({"output": str(self.config.output), "steps": self.results, "next": self.next})
        if self.next and not self.as_json:
            click.echo(f"Next: {self.next}")

    def _check_dataset(self, chosen: list[Step]) -> None:
        """Refuse a dataset that is not there before a profile is built for it."""
        if "score" not in [step.name for step in chosen]:
            return
        from larf_curate.data.sources import check_there  # datasets takes a second to import: not for --help

        try:
            for name in self.config.dataset:
                check_there(name)
        except InputError as error:
            raise InputError(f"{self.config.path}: dataset: {error}") from error

    def _do_each(self, chosen: list[Step]) -> None:
        pending = False
        for step in chosen:
            if not pending and self._is_complete(step):
                self._say(step, "complete")
            elif self.dry_run:
                pending = True
                self._say(step, "to do")
            elif self.next is None:
                self._do(step)

    def _is_complete(self, step: Step) -> bool:
        if step.name in ("review", "pull"):
            merge = self.config.sections["review"].get("merge")
            return self.progress.are_decided(merge.texts[0] if merge else _default("merge"))
        return self.progress.is_complete(step)

    def _do(self, step: Step) -> None:
        self.progress.check(step)  # again, since earlier steps have written the files that it reads
        if not self.as_json:
            click.echo(f"{step.name}: {visible(step.line)}")
        read = digests(step.read())
        with _naming(step, self.config):
            self.results[step.name] = {"state": "failed"}
            self.results[step.name] |= self._invoke(step)
            self.results[step.name]["state"] = "done"
            self.progress.add(step, read)
            if step.name == "review":
                self._review(step)

    def _invoke(self, step: Step) -> dict[str, Any]:
        """Run the command of a step; returns what it prints as JSON, if that is wanted."""
        given = [*(["--json"] if self.as_json else []), *step.arguments]
        with step.command.make_context(" ".join(step.words), given, parent=self.context.parent) as inner:
            if not self.as_json:
                step.command.invoke(inner)
                return {}
            with redirect_stdout(io.StringIO()) as printed:
                try:
                    step.command.invoke(inner)
                finally:
                    self.results[step.name] |= _parsed(printed.getvalue())
        return {}

    def _review(self, step: Step) -> None:
        """Look at the queue, or wait, until enough rows are decided."""
        settings = self.config.sections["review"]
        wanted = read_until(self.context, UNTIL, settings["until"].texts[0]) if "until" in settings else None
        given = arguments(status_command, settings)
        with status_command.make_context("review status", given, parent=self.context.parent) as inner:
            address = QueueAddress(**{field.name: inner.params[field.name] for field in fields(QueueAddress)})
        with address.find(self.config.output / "selection") as queue:
            state, told = queue.status(), -1
            while "wait" in settings and not _is_decided(state, wanted):
                if state.done != told and not self.as_json:
                    click.echo(visible(f"waiting: {state.done} of {state.rows} rows decided at {state.url}"))
                told = state.done
                time.sleep(POLL_SECONDS)
                state = queue.status()
            if _is_decided(state, wanted):
                self.progress.check_none_lost(queue)
        self.results[step.name] |= {"decided": state.done, "rows": state.rows, "url": state.url}
        if not _is_decided(state, wanted):
            self.results[step.name]["state"] = "waiting"
            again = shlex.join(["larf-curate", "run", str(self.config.path)])
            self.next = visible(f"review at {state.url} ({state.done} of {state.rows} rows decided), then {again}")

    def _say(self, step: Step, state: str) -> None:
        """Tell of a step that is not done now."""
        self.results[step.name] = {"state": state, "command": step.line}
        if not self.as_json:
            click.echo(visible(f"{step.name}: {state}: {step.line}"))


def _chosen(config: Config, until: str | None) -> list[Step]:
    """The steps up to the last one that is wanted."""
    plan = steps(config)
    names = [step.name for step in plan]
    if until and until not in names:
        section = "review" if until == "pull" else until
        raise InputError(f"{config.path} has no section {section}, which --until {until} needs: add it")
    return plan[: names.index(until) + 1] if until else plan


def _is_decided(state: "QueueStatus", wanted: int | None) -> bool:
    return state.pending == 0 if wanted is None else state.done >= min(wanted, state.rows)


def _default(name: str) -> str:
    """The default of an option of ``review pull``."""
    return str(next(param.default for param in pull.params if param.name == name))


@contextmanager
def _naming(step: Step, config: Config) -> Iterator[None]:
    """Say at which step an error occurred, and turn wrong usage into an error of the file."""
    try:
        yield
    except click.UsageError as error:
        raise InputError(f"{config.path}: {step.name}: {error.format_message()}") from error
    except (Exception, KeyboardInterrupt) as error:
        ended = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        click.echo(f"{step.name} {ended}; complete steps stay in {config.output}, and the next run goes on", err=True)
        raise


def _parsed(text: str) -> dict[str, Any]:
    """The JSON object that a command printed; empty if it failed before."""
    return dict(json.loads(text)) if text else {}
