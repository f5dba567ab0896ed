"""Publish the rows that were kept: to the Hub in one commit, or to a folder with the same files."""

import os
import tempfile
from pathlib import Path

from larf_curate.errors import PublishError
from larf_curate.publish.bundle import Publication, PublishedFile, assemble
from larf_curate.publish.folder import FolderTarget
from larf_curate.publish.hub import HubTarget
from larf_curate.publish.kept_rows import read_source
from larf_curate.publish.shards import stage_shards

__all__ = ["Publication", "PublishedFile", "publish"]


def publish(
    decisions: str | os.PathLike[str],
    repo_id: str | os.PathLike[str],
    *,
    private: bool = True,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    endpoint: str | None = None,
) -> Publication:
    """Publish the kept rows with a card and the record of how they were chosen.

    Everything arrives in one commit or not at all, on top of the state that was read: shards of an earlier publication
    go in the same commit, an existing card keeps its own text and metadata, and if somebody else commits meanwhile, all
    is read and merged again. Publishing the same decisions twice makes no second commit. Earlier commits of the
    repository keep what they held.

    Args:
        decisions: The folder that ``review pull`` wrote, or the one that ``select`` wrote; of the latter only the rows
            that were not flagged are published, and the card says that no person reviewed them.
        repo_id: ``org/name`` on the Hub; or a folder: a path object, or a text beginning with ``.``, ``/`` or ``~``.
        private: Visibility of a repository that does not exist yet; an existing one keeps its own.
        create_pr: Open a pull request instead of committing to the branch.
        dry_run: Do all but write.
        token: A Hub token with write access; the one of the login or ``HF_TOKEN``, if left out.
        revision: An existing branch; main, if left out.
        commit_message: Title of the commit.
        endpoint: Address of the Hub; ``HF_ENDPOINT``, if left out.

    Returns:
        What was published, or what would be.

    Raises:
        InputError: If the folder of decisions cannot be used, or holds a row in two places or none.
        PublishError: If the Hub refuses or cannot be reached, or the destination holds data that would stay behind.
    """
    target: FolderTarget | HubTarget
    if folder := _as_folder(repo_id):
        if create_pr or revision:
            raise PublishError(f"a folder has no branches or pull requests: publish to {folder} without them")
        target = FolderTarget(folder)
    else:
        target = HubTarget(
            str(repo_id),
            private=private,
            create_pr=create_pr,
            revision=revision,
            commit_message=commit_message,
            token=token,
            endpoint=endpoint,
        )
    source = read_source(Path(decisions))
    with tempfile.TemporaryDirectory(prefix="larf-curate-") as staging:
        shards = stage_shards(source, Path(staging))
        return target.publish(lambda existing: assemble(source, shards, existing, target.name), dry_run=dry_run)


def _as_folder(target: str | os.PathLike[str]) -> Path | None:
    """The folder meant, or None for a repository id."""
    if isinstance(target, str) and not target.startswith((".", "/", "~", "\\")) and not Path(target).is_absolute():
        return None
    return Path(target).expanduser()
