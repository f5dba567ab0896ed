"""One publication as files: what the destination holds, what it shall hold, and whether that differs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeAlias

from larf_curate.errors import PublishError
from larf_curate.files import sha256
from larf_curate.publish.card import PATTERN, configs_of, merge_card, render_section
from larf_curate.publish.kept_rows import Source
from larf_curate.publish.provenance import render_provenance
from larf_curate.publish.shards import Shards

CARD, PROVENANCE = "README.md", "provenance.json"
DATA_SUFFIXES = (
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
SHA256_LENGTH = 64
Content: TypeAlias = Path | bytes


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file of a publication: its path there, its size and the SHA-256 of its bytes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What was published, or in a dry run would be.

    Args:
        url: Where the rows are.
        commit: Id of the commit; of the one already there if nothing changed; None for a folder or a dry run.
        pr_url: Address of the pull request, if one was opened.
        changed: Whether anything had to be written.
        private: Visibility of the repository; None for a folder.
        created: Whether the repository or folder is new.
        dry_run: Whether nothing was written on purpose.
        files: All files of the publication.
        deleted: Paths of an earlier publication that go.
        counts: Rows by what became of them; ``published`` are the rows there.
        card: Text of the card.
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
    counts: dict[str, int]
    card: str


@dataclass(frozen=True, kw_only=True)
class Existing:
    """What a destination holds.

    Args:
        files: Digest of each file by path: SHA-256, or git's blob id.
        card: Text of the card, if there is one.
        parent: The commit that was read.
        private: Visibility of the repository.
        created: Whether it was not there before.
    """

    files: dict[str, str] = field(default_factory=dict)
    card: str | None = None
    parent: str | None = None
    private: bool | None = None
    created: bool = False


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a destination shall hold: files to add by path, and paths to delete."""

    files: dict[str, Content]
    deleted: tuple[str, ...]
    counts: dict[str, int]

    @property
    def card(self) -> str:
        """Text of the card."""
        card = self.files[CARD]
        return card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")

    def differs(self, existing: Existing) -> bool:
        """Whether the destination holds anything else."""
        same = (_same(existing.files.get(path), content) for path, content in self.files.items())
        return bool(self.deleted) or not all(same)

    def publication(
        self,
        existing: Existing,
        url: str,
        *,
        commit: str | None = None,
        pr_url: str | None = None,
        changed: bool,
        dry_run: bool = False,
    ) -> Publication:
        """What became of it."""
        return Publication(
            url=url,
            commit=commit,
            pr_url=pr_url,
            changed=changed,
            private=existing.private,
            created=existing.created,
            dry_run=dry_run,
            files=tuple(
                PublishedFile(path=path, bytes=size(content), sha256=digest(content))
                for path, content in self.files.items()
            ),
            deleted=self.deleted,
            counts=self.counts,
            card=self.card,
        )


Assemble: TypeAlias = Callable[[Existing], Bundle]


def assemble(source: Source, shards: Shards, existing: Existing, name: str) -> Bundle:
    """Merge a publication with what the destination holds.

    Args:
        source: What is published.
        shards: Its Parquet files.
        existing: What the destination holds.
        name: Title of a new card.

    Returns:
        The files and deletions of one commit.

    Raises:
        PublishError: If there is data at the destination that would stay beside the published rows.
    """
    earlier = [path for path in existing.files if _matches(path, PATTERN)]
    _refuse_foreign(existing, earlier)
    card = merge_card(existing.card, render_section(source), name=name, shards=shards)
    files: dict[str, Content] = {**shards.files}
    files[CARD] = card.encode()
    files[PROVENANCE] = render_provenance(source, shards)
    deleted = tuple(path for path in earlier if path not in files)
    return Bundle(files=files, deleted=deleted, counts=source.counts)


def size(content: Content) -> int:
    """Bytes of a file."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def digest(content: Content) -> str:
    """Hex SHA-256 of a file's bytes."""
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)


def git_blob_id(content: Content) -> str:
    """The id git gives a file, which the Hub tells for files that are not large."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _same(known: str | None, content: Content) -> bool:
    """Whether a file has the digest that the destination tells."""
    if known is None:
        return False
    return known == (digest(content) if len(known) == SHA256_LENGTH else git_blob_id(content))


def _refuse_foreign(existing: Existing, earlier: list[str]) -> None:
    """Data that no configuration of the card claims would stay in the repository, flagged rows and all."""
    claimed = [pattern for config in configs_of(existing.card) for pattern in _patterns(config.get("data_files"))]
    foreign = [
        path
        for path in sorted(existing.files)
        if path.lower().endswith(DATA_SUFFIXES)
        and path not in (PROVENANCE, *earlier)
        and not any(_matches(path, pattern) for pattern in claimed)
    ]
    if foreign:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise PublishError(
            f"the destination holds other data ({shown}) that would stay beside the published rows: publish to a"
            " repository of its own, or delete those files first"
        )


def _patterns(data_files: object) -> list[str]:
    """The path patterns in a configuration's ``data_files``, in any of the forms a card may give them."""
    if isinstance(data_files, str):
        return [data_files]
    if isinstance(data_files, dict):
        return _patterns(data_files.get("path"))
    return [pattern for item in data_files for pattern in _patterns(item)] if isinstance(data_files, list) else []


def _matches(path: str, pattern: str) -> bool:
    """Whether a glob matches a path; a star stays within a folder unless it is doubled."""
    return fnmatchcase(path, pattern) and ("**" in pattern or path.count("/") == pattern.count("/"))
