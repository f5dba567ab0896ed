"""The steps of ``larf-curate run``: their command lines, and which of them are complete from an earlier run."""

import glob
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import TypedDict

from larf_curate.cli.config_file import Config, Settings, arguments
from larf_curate.cli.sections import SECTIONS
from larf_curate.errors import InputError
from larf_curate.files import sampled_digest, sha256
from larf_curate.manifests import DECISIONS, PLAN, SCORED, SELECTION, ShardRecord, read_manifest
from larf_curate.records import STRICT, read_sealed, write_sealed
from larf_curate.remote import is_url, is_within, public_name
from larf_curate.verification import is_unchanged

if TYPE_CHECKING:
    from larf_curate.review import ReviewQueue

RECORD = "run.json"
"""Name of the file that records the settings and inputs of the steps that are complete."""
WEIGHTS = (".safetensors", ".bin")
"""Files of which samples are compared: hashing all weights of a large model would take minutes."""
PATHS = ("adapter", "guard", "layers", "model", "neutral", "references", "safe", "unsafe")
"""Keys whose value may be a path, or something else."""
PROFILE, SELECTED, DECIDED = "profile/larf_profile.json", f"selection/{SELECTION.file}", f"decisions/{DECISIONS.file}"


class StepRecord(TypedDict):
    """What a complete step was given, and the digests of the files that it read and of the last one that it wrote."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    settings: dict[str, str]
    files: dict[str, str]
    result: str


class RunRecord(TypedDict):
    """``run.json``: the complete steps by name."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    steps: dict[str, StepRecord]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a run, which is one command.

    Args:
        name: Its name.
        command: The command.
        words: The words of the command after ``larf-curate``.
        arguments: Its options and arguments.
        settings: What was chosen, for comparison with an earlier run.
        inputs: Files that earlier steps write last.
        names: Names that may be files of the user.
        plots: Folders of the user's that it writes to.
        result: The file that it writes last; None if running it again does no harm.
    """

    name: str
    command: click.Command
    words: tuple[str, ...]
    arguments: tuple[str, ...]
    settings: dict[str, str]
    inputs: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    plots: tuple[str, ...] = ()
    result: Path | None = None

    @property
    def line(self) -> str:
        """The command line, without credentials."""
        return shlex.join(["larf-curate", *self.words, *(_public(part) for part in self.arguments)])

    def read(self) -> list[Path]:
        """The files that the step reads and that are on this machine."""
        found: list[Path] = []
        for name in self.names:
            if not is_url(name):
                found += _files(Path(name)) or sorted(path for path in _glob(name) if path.is_file())
        return [*self.inputs, *found]

    def written(self) -> list[Path]:
        """The files that the step has written into folders of the user's."""
        return [path for name in self.plots for path in _files(Path(name))]


def steps(config: Config) -> list[Step]:
    """The steps that the settings ask for, in order.

    Raises:
        InputError: If the output is in a folder that is read.
    """
    _check_output(config)
    out, given = config.output, config.sections
    profile, scored, selection, decisions = (
        str(out / name) for name in ("profile", "scored", "selection", "decisions")
    )
    tokens = ("--profile", profile) if "tokens" in given["select"] else ()
    compared = "against" in given["report"]  # which takes no profile
    form = given["report"].get("format")
    report = out / f"report.{form.texts[0] if form else 'html'}"
    plan = [
        _step("profile", given, (config.model,), "-o", profile, inputs=(), result=out / PROFILE),
        _step(
            *("score", given, config.dataset, "--profile", profile, "-o", scored, "--resume"),
            inputs=(out / PROFILE,),
            result=Path(scored, SCORED.file),
        ),
        _step(
            *("select", given, (scored,), *tokens, "-o", selection),
            inputs=(Path(scored, SCORED.file),),
            result=out / SELECTED,
        ),
        _step(
            *("report", given, (selection,), *(() if compared else ("--profile", profile)), "-o", str(report)),
            inputs=(out / SELECTED,),
            result=report,
        ),
    ]
    if "review" in given:
        plan += [_step("review", given, (selection,)), _step("pull", given, (selection,), "-o", decisions)]
    if "publish" in given:
        plan.append(_step("publish", given, (decisions if "review" in given else selection,)))
    return plan


def _check_output(config: Config) -> None:
    """Check that results are not written into a folder that is read, of which they would become a part."""
    for name in (config.model, *config.dataset):
        if name and not is_url(name) and _is_folder(name) and is_within(config.output, name):
            raise InputError(f"{config.path}: output {config.output} is in {name}, which is read: give another folder")


def _step(
    name: str,
    given: Mapping[str, Settings],
    positional: Sequence[str],
    *options: str,
    inputs: tuple[Path, ...] = (),
    result: Path | None = None,
) -> Step:
    """One step: ``review`` and ``pull`` are the two commands of the section ``review``."""
    section = "review" if name == "pull" else name
    command = SECTIONS[section].commands[name == "pull"]
    chosen = given[section]
    names = [text for text in positional if result and text not in map(str, (each.parent for each in inputs))]
    separator = ("--",) if any(text.startswith("-") for text in positional) else ()
    return Step(
        name=name,
        command=command,
        words=("review", "push" if name == "review" else "pull") if section == "review" else (name,),
        arguments=(*options, *arguments(command, chosen), *separator, *positional),
        settings={"": " ".join(map(_public, names))} | {key: _public(given.value) for key, given in chosen.items()},
        inputs=inputs,
        names=(*names, *_paths(section, chosen)) if result else (),
        plots=chosen["plots"].texts if "plots" in chosen else (),
        result=result,
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What earlier runs have completed in a folder.

    Args:
        folder: The folder of all results.
    """

    folder: Path

    def is_complete(self, step: Step) -> bool:
        """Whether a step is complete, with the same settings and unchanged files."""
        record = self._read().get(step.name)
        if record is None or step.result is None or not step.result.exists():
            return False
        if self.changes(step) or not is_unchanged(step.result, record["result"]):
            return False
        return all(path.is_file() for path in _shards_of(step.result))

    def changes(self, step: Step) -> list[str]:
        """What differs from the completed step of this name: settings with both values, and files."""
        if (record := self._read().get(step.name)) is None:
            return []
        old, new = record["settings"], step.settings
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        settings = [f"{key or 'name'} {old.get(key, 'default')}, now {new.get(key, 'default')}" for key in changed]
        present = {str(path): path for path in (*step.read(), *step.written())}
        names = [name for name in {**record["files"], **present} if not _is_same(name, record["files"])]
        return settings + [f"changed: {name}" for name in names]

    def check(self, step: Step) -> None:
        """Check that doing a step again does not make results worthless that are costly or people's.

        Raises:
            InputError: If it would.
        """
        if not (changes := self.changes(step)):
            return
        shown, scored, decisions = "; ".join(changes), self.folder / "scored", self.folder / "decisions"
        if step.name == "profile" and (scored / PLAN).exists():
            raise InputError(
                f"profile: {shown}: {scored} was scored with the earlier profile: use the same settings, remove "
                f"{scored} to score again, or give another output"
            )
        # Not `score`, which compares settings itself, and takes those that change no result.
        if step.name in ("profile", "select") and (decisions / DECISIONS.file).exists():
            raise InputError(
                f"{step.name}: {shown}: {decisions} holds people's decisions on the earlier selection: use the same "
                f"settings, move {decisions} elsewhere (the server keeps the decisions), or give another output"
            )

    def add(self, step: Step, read: Mapping[str, str]) -> None:
        """Record that a step is complete.

        Args:
            step: The step.
            read: Digests of the files that it read, from before it began: a file may change while rows are scored.
        """
        if step.result is None:
            return
        files = {**read, **digests(step.written())}
        record = {"settings": step.settings, "files": files, "result": sha256(step.result)}
        write_sealed(self.folder / RECORD, {"steps": {**self._read(), step.name: record}})

    def are_decided(self, merge: str) -> bool:
        """Whether all decisions on the selection were pulled, by this rule.

        Raises:
            InputError: If the decisions are on another selection.
        """
        if not (self.folder / DECIDED).exists():
            return False
        pulled = read_manifest(self.folder / "decisions", DECISIONS)
        selected = read_manifest(self.folder / "selection", SELECTION)
        if _rows_of(pulled["selection"]) != _rows_of(selected):
            folder = self.folder / "decisions"
            raise InputError(
                f"{folder} holds people's decisions on another selection: move it elsewhere (the server keeps the "
                "decisions), then run again"
            )
        return pulled["merge"] == merge and not pulled["counts"]["withheld"]

    def check_none_lost(self, queue: "ReviewQueue") -> None:
        """Check that a queue has all decisions that were pulled before.

        Raises:
            InputError: If it has not, for example since it was deleted and pushed again, or another server is used.
        """
        from larf_curate.review import Decisions

        if not (self.folder / DECIDED).exists():
            return
        folder = self.folder / "decisions"
        earlier = Decisions.load(folder)
        before, now = (
            {row.row_id for row in each.rows if row.status in ("decided", "conflict")}
            for each in (earlier, queue.pull(merge=earlier.merge))  # by the same rule
        )
        if lost := before - now:
            raise InputError(
                f"the queue has {len(now)} decided rows, and {folder} holds {len(before)}, of which it lacks "
                f"{len(lost)}: use the server and queue with these decisions, or move {folder} elsewhere"
            )

    def _read(self) -> dict[str, StepRecord]:
        path = self.folder / RECORD
        if not path.exists():
            return {}
        return read_sealed(path, RunRecord, remedy="remove it, then the steps are done again")["steps"]


def _shards_of(result: Path) -> list[Path]:
    """The shards that a result lists; none if it is no manifest."""
    shards: Sequence[ShardRecord] = ()
    if result.name == SCORED.file:
        shards = read_manifest(result.parent, SCORED)["shards"]
    elif result.name == SELECTION.file:
        shards = read_manifest(result.parent, SELECTION)["shards"]
    return [result.parent / shard["file"] for shard in shards]


def _paths(section: str, settings: Settings) -> list[str]:
    """Values that may be paths of files that are read."""
    options = SECTIONS[section].options
    keys = [key for key in settings if key in PATHS or isinstance(options[key].type, click.Path) and key != "plots"]
    return [text for key in keys for text in settings[key].texts]


def _rows_of(selection: Mapping[str, Any]) -> tuple[object, object]:
    """What binds decisions to a selection: its row ids, and the scores."""
    return selection["ids"], selection["scored"].get("scores")


def _public(text: str) -> str:
    """An argument without credentials."""
    option, sign, value = text.partition("=")
    return option + sign + public_name(value) if text.startswith("--") and sign else public_name(text)


def _files(path: Path) -> list[Path]:
    """A file, or the files in a folder."""
    try:
        if path.is_file():
            return [path]
        return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
    except (OSError, ValueError):  # a value that cannot be a path
        return []


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # a value that cannot be a path
        return False


def _glob(name: str) -> list[Path]:
    return [Path(each) for each in glob.glob(name, recursive=True)] if glob.has_magic(name) else []


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Digests of those of some files that are there, by path."""
    return {str(path): _digest(path) for path in paths if path.is_file()}


def _digest(path: Path) -> str:
    return sampled_digest([path]) if path.suffix in WEIGHTS else sha256(path)


def _is_same(name: str, recorded: Mapping[str, str]) -> bool:
    """Whether a file is there, and the recorded one."""
    path = Path(name)
    if name not in recorded or not path.is_file():
        return False
    return _digest(path) == recorded[name] if path.suffix in WEIGHTS else is_unchanged(path, recorded[name])
