"""A publication as files: the current and the new contents of the destination, and whether they differ."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeAlias

from larf_curate.errors import PublishError
from larf_curate.publish.card import license_notes, merge_card, other_configs_of_card, parse_card, section_values
from larf_curate.publish.content import SHA256_LENGTH, Content, digest, is_unchanged, size
from larf_curate.publish.contents import Contents
from larf_curate.publish.croissant import FILE as CROISSANT
from larf_curate.publish.croissant import render_croissant
from larf_curate.publish.diff import RowDiff, compare_rows
from larf_curate.publish.provenance import FileRecord, is_provenance, published_files, render_provenance

CARD, PROVENANCE = "README.md", "provenance.json"
# What `load_dataset` may load as data, compressed files included, and what else holds rows.
DATA_SUFFIXES = (
    *(".tar", ".tgz", ".7z", ".rar", ".pkl", ".pickle", ".h5", ".hdf5", ".npy", ".npz", ".feather", ".orc", ".avro"),
    *(".xlsx", ".xls", ".db", ".sqlite", ".sqlite3", ".tfrecord", ".msgpack", ".lance", ".xml"),
    ".parquet",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".ndjson",
    ".arrow",
    ".gz",
    ".zst",
    ".xz",
    ".bz2",
    ".zip",
)
DOCUMENT_SUFFIXES = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".py", ".bib", ".cff", ".gitignore")
DOCUMENTS = ("license", "licence", "notice", "copying", ".gitattributes", "croissant.json")
"""Beginnings of the lower-case names of files about a dataset, which stay beside it without a word."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A published file: its path in the repository, its size in bytes and its hex SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Result of ``publish``: what was published, or would be with ``dry_run``.

    Args:
        url: URL of the repository, or path of the folder.
        commit: Id of the new commit, or of the current one if nothing changed; None for a folder or a dry run.
        pr_url: URL of the pull request, if one was opened.
        changed: Whether the destination differed from the publication.
        private: Visibility of the repository; None for a folder.
        created: Whether the repository or folder is new.
        dry_run: Whether this was a dry run, which writes nothing.
        files: All files of the publication.
        deleted: Paths of deleted files.
        replaced: Paths of data files that larf-curate had not published, and that were deleted or overwritten.
        beside: Paths of files that stay beside the published rows, and that are neither documents nor of another
            configuration of the card.
        notes: What a person should know: that no licence is known, or texts of removed rows are published.
        diff: Comparison with the published rows, if it was asked for.
        tag: The tag of the commit, if it has one.
        counts: Numbers of rows: ``rows`` are ``unflagged`` and ``flagged``; flagged ones are ``kept``, ``edited`` and
            ``removed`` by people, together ``reviewed``, and ``withheld``; ``published`` ones are unflagged, kept and
            edited. ``unscorable`` ones are among the flagged.
        card: Text of the dataset card.
    """

    url: str
    commit: str | None
    pr_url: str | None
    changed: bool
    private: bool | None
    created: bool
    dry_run: bool
    files: tuple[PublishedFile, ...]
    deleted: tuple[str, ...]
    replaced: tuple[str, ...]
    beside: tuple[str, ...]
    notes: tuple[str, ...]
    diff: RowDiff | None
    tag: str | None
    counts: dict[str, int]
    card: str


@dataclass(frozen=True, kw_only=True)
class DestinationState:
    """Contents of a destination before publishing.

    Args:
        files: Digest of each file by path: hex SHA-256, or git's blob id (hex SHA-1).
        card: Text of the dataset card, if there is one.
        provenance: Content of ``provenance.json``, if there is one.
        parent: Commit that was read, the parent of the new one; None for a folder.
        private: Visibility of the repository; None for a folder.
        created: Whether the destination is new.
        open_file: Context manager that gives a local copy of a file.
    """

    files: dict[str, str] = field(default_factory=dict)
    card: str | None = None
    provenance: bytes | None = None
    parent: str | None = None
    private: bool | None = None
    created: bool = False
    open_file: Callable[[str], AbstractContextManager[Path]] | None = None


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Contents of a destination after publishing: files to add by path, and paths to delete.

    ``replaced``, ``beside``, ``notes`` and ``diff`` are as in `Publication`.
    """

    files: dict[str, Content]
    deleted: tuple[str, ...]
    counts: dict[str, int]
    replaced: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    diff: RowDiff | None = None

    @property
    def card(self) -> str:
        """Text of the card."""
        card = self.files[CARD]
        return card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")

    def differs(self, current: DestinationState) -> bool:
        """Whether publishing would change the destination."""
        unchanged = (is_unchanged(current.files.get(path), content) for path, content in self.files.items())
        return bool(self.deleted) or not all(unchanged)

    def publication(
        self,
        current: DestinationState,
        url: str,
        *,
        commit: str | None = None,
        pr_url: str | None = None,
        tag: str | None = None,
        changed: bool,
        dry_run: bool = False,
    ) -> Publication:
        """Describe the outcome of publishing this bundle."""
        return Publication(
            url=url,
            commit=commit,
            pr_url=pr_url,
            changed=changed,
            private=current.private,
            created=current.created,
            dry_run=dry_run,
            files=tuple(
                PublishedFile(path=path, bytes=size(content), sha256=digest(content))
                for path, content in self.files.items()
            ),
            deleted=self.deleted,
            replaced=self.replaced,
            beside=self.beside,
            notes=self.notes,
            diff=self.diff,
            tag=tag,
            counts=self.counts,
            card=self.card,
        )


Assemble: TypeAlias = Callable[[DestinationState], Bundle]


def assemble(
    contents: Contents, current: DestinationState, name: str, *, replace: bool = False, diff: bool = False
) -> Bundle:
    """Merge a publication with the current contents of the destination.

    Args:
        contents: What is published.
        current: Contents of the destination.
        name: Title of a new card.
        replace: Whether data that larf-curate did not publish may be deleted.
        diff: Whether to compare the rows with the published ones.

    Returns:
        The files and deletions of one commit.

    Raises:
        PublishError: If the destination holds data that larf-curate did not publish and ``replace`` is not set, or its
            card cannot be merged.
    """
    card = merge_card(current.card, contents, name=name, replace=replace)
    generated = {picture.path: picture.content for picture in contents.pictures}
    generated[CROISSANT] = _croissant(contents, card, name=name)
    ours, foreign, beside = _sorted_files(current, contents, generated, replace=replace)
    if foreign and not replace:
        raise PublishError(
            f"the destination holds other data, which larf-curate did not publish ({_listed(foreign)}): publish to a "
            "separate repository or folder, or replace these files (--replace; with --dry-run to see all of them)"
        )
    files: dict[str, Content] = {path: content for path, content in generated.items() if path not in beside}
    files |= {path: shards.files[path] for path, shards in contents.data_files.items()}
    provenance = render_provenance(contents.kept_rows, files)
    files |= {CARD: card.encode(), PROVENANCE: provenance}
    return Bundle(
        files=files,
        deleted=tuple(path for path in sorted({*ours, *foreign}) if path not in files),
        counts=contents.kept_rows.counts,
        replaced=tuple(foreign),
        beside=tuple(beside),
        notes=tuple(_notes(contents, card)),
        diff=_diff(contents, current) if diff else None,
    )


def _notes(contents: Contents, card: str) -> list[str]:
    notes = license_notes(card, contents.source)
    if contents.removed and contents.has_removed_text:
        notes.append(f"the texts of {contents.removed.rows} rows that are not published as data are published too")
    return notes


def _croissant(contents: Contents, card: str, *, name: str) -> bytes:
    metadata = parse_card(card).data.to_dict()  # type: ignore[no-untyped-call]
    return render_croissant(contents, metadata, section_values(contents.kept_rows), name=name)


def _diff(contents: Contents, current: DestinationState) -> RowDiff:
    """Compare the kept rows with those that are published."""
    opener, folder = current.open_file, f"{contents.shards.folder}/"
    recorded, files = published_files(current.provenance), current.files
    paths = [path for path in sorted(recorded) if path in files and _is_published(files[path], recorded[path])]
    paths = paths if opener else []
    published = (opener(path) for path in paths if path.startswith(folder)) if opener else ()
    return compare_rows(published, (nullcontext(path) for path in contents.shards.files.values()))


def _sorted_files(
    current: DestinationState, contents: Contents, generated: Mapping[str, bytes], *, replace: bool
) -> tuple[list[str], list[str], list[str]]:
    """Paths of the destination: data that we published, other data, and other files that stay beside the rows.

    Other data may be the unfiltered dataset: the removed rows would then be published beside the kept ones, or data
    would be lost that nobody has elsewhere. Files of other configurations of the card are in none of the lists. Plots
    and the like that others have put where ours would be stay: ours are not written then.
    """
    published, new_files = published_files(current.provenance), contents.data_files
    new: dict[str, Content] = {**generated, **{path: shards.files[path] for path, shards in new_files.items()}}
    configs = other_configs_of_card(current.card, contents, replace=replace)
    claimed = [pattern for config in configs for pattern in _patterns(config.get("data_files"))]
    ours: list[str] = []
    foreign: list[str] = []
    beside: list[str] = []
    for path, reported in sorted(current.files.items()):
        if path == CARD or any(_matches(path, pattern) for pattern in claimed):
            continue
        if path == PROVENANCE:
            foreign.extend([] if is_provenance(current.provenance) else [path])
            continue
        if (path in new and is_unchanged(reported, new[path])) or _is_published(reported, published.get(path)):
            ours.append(path)
        elif path in generated:
            beside.append(path)
        elif path in new_files or path.lower().endswith(DATA_SUFFIXES) and not _is_document(path):
            foreign.append(path)
        elif not _is_document(path):
            beside.append(path)
    return ours, foreign, beside


def _is_published(reported: str, recorded: FileRecord | None) -> bool:
    """Whether a file is one that was recorded; those of earlier versions have no blob ids of git."""
    if recorded is None:
        return False
    same = recorded["sha256"] if len(reported) == SHA256_LENGTH else recorded.get("blob", reported)
    return reported == same


def _is_document(path: str) -> bool:
    name = path.lower().rsplit("/", 1)[-1]
    return name.startswith(DOCUMENTS) or name.endswith(DOCUMENT_SUFFIXES)


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _patterns(data_files: object) -> list[str]:
    """The path patterns in a configuration's ``data_files``: a string, a dict with ``path``, or a list of either."""
    if isinstance(data_files, str):
        return [data_files]
    if isinstance(data_files, dict):
        return _patterns(data_files.get("path"))
    return [pattern for item in data_files for pattern in _patterns(item)] if isinstance(data_files, list) else []


def _matches(path: str, pattern: str) -> bool:
    """Whether a glob pattern matches a path; ``*`` does not cross folders, ``**`` does."""
    return fnmatchcase(path, pattern) and ("**" in pattern or path.count("/") == pattern.count("/"))
