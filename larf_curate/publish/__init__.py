"""Publish the kept rows: to a dataset repository on the Hub in one commit, or to a folder with the same files."""

import os
import tempfile
from pathlib import Path

from larf_curate.errors import InputError
from larf_curate.publish.bundle import Publication, PublishedFile, assemble
from larf_curate.publish.contents import Contents
from larf_curate.publish.diff import RowDiff
from larf_curate.publish.folder import FolderTarget
from larf_curate.publish.hub import HubTarget
from larf_curate.publish.hub_errors import check_repo_id
from larf_curate.publish.kept_rows import read_kept_rows
from larf_curate.publish.pictures import draw_pictures
from larf_curate.publish.protection import check_target
from larf_curate.publish.removed import stage_removed
from larf_curate.publish.shards import Columns, stage_shards
from larf_curate.publish.source_card import read_source_card
from larf_curate.remote import local_copy

__all__ = ["Publication", "PublishedFile", "RowDiff", "publish"]


def publish(
    decisions: str | os.PathLike[str],
    repo_id: str | os.PathLike[str],
    *,
    columns: Columns = "scores",
    include_removed_text: bool = False,
    private: bool = True,
    create_pr: bool = False,
    branch: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    diff: bool = False,
    replace: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    endpoint: str | None = None,
) -> Publication:
    """Publish the kept rows with a dataset card and the record of how they were chosen (``provenance.json``).

    All other rows become the configuration ``removed``, with score, reason, decision and nearest exemplar, but without
    their texts. The source's licence and languages are carried over from its card on the Hub.

    On the Hub, publishing is one atomic commit. It also deletes the shards of an earlier publication and keeps the text
    and metadata of an existing card. If the repository changes in the meantime, it is read and merged again. Publishing
    the same decisions again makes no commit. Deleted rows remain in the history of the repository.

    Images and other media are embedded; the files that rows refer to are read for that.

    Args:
        decisions: The folder, or its URL, that ``review pull`` or ``select`` wrote. Of a selection only the rows that
            were not flagged are published, and the card states that the flagged rows were not reviewed by people.
        repo_id: ``org/name`` on the Hub, or a folder: a path object, or a string beginning with ``.``, ``/`` or ``~``.
        columns: Columns to publish: ``source`` for those of the source dataset alone, ``scores`` with row id, score and
            decision too, ``all`` for all ``larf_*`` columns but the answers that reviewers edited away.
        include_removed_text: Publish the source's columns of the other rows too, such as the texts of removed rows.
        private: Visibility of a new repository; that of an existing one does not change.
        create_pr: Open a pull request instead of committing to the branch, or update the open one that an earlier
            call with the same title has opened.
        branch: The branch (default: ``main``); created from ``main`` if it does not exist.
        tag: Name of a new tag for the published commit.
        dry_run: Merge with the destination and report the result, but write nothing.
        diff: Compare the rows with the published ones too, and write nothing.
        replace: Delete data at the destination that larf-curate did not publish; without it, such data are refused.
        token: A Hub token with write access (default: ``HF_TOKEN`` or the token of ``hf auth login``).
        commit_message: Title of the commit.
        endpoint: URL of the Hub (default: ``HF_ENDPOINT`` or the public Hub).

    Returns:
        What was published, or would be with ``dry_run``.

    Raises:
        InputError: If ``decisions`` is not such a folder, is inconsistent, or has no row to publish; if the name of a
            branch or tag is invalid, or a pull request shall have either.
        PublishError: If the Hub rejects the request or cannot be reached, or if the destination holds data that
            larf-curate did not publish and ``replace`` is not set; if it is a folder that is, contains or is within an
            input or a folder of other results.
    """
    target: FolderTarget | HubTarget
    if folder := _as_folder(repo_id):
        if create_pr or branch or tag:
            raise InputError(f"a folder has no branches, tags or pull requests: omit these options for {folder}")
        target = FolderTarget(folder)
    else:
        target = HubTarget(
            str(repo_id),
            private=private,
            create_pr=create_pr,
            branch=branch,
            tag=tag,
            commit_message=commit_message,
            token=token,
            endpoint=endpoint,
        )
    decisions = local_copy(decisions)
    kept_rows = read_kept_rows(decisions)
    if folder:
        check_target(folder, decisions, kept_rows)
    with tempfile.TemporaryDirectory(prefix="larf-curate-") as staging:
        contents = Contents(
            kept_rows=kept_rows,
            shards=stage_shards(kept_rows, Path(staging, "kept"), columns=columns),
            removed=stage_removed(kept_rows, Path(staging, "removed"), include_text=include_removed_text),
            has_removed_text=include_removed_text,
            pictures=draw_pictures(kept_rows),
            source=read_source_card(kept_rows, token=token, endpoint=endpoint),
        )
        return target.publish(
            lambda current: assemble(contents, current, target.name, replace=replace, diff=diff),
            dry_run=dry_run or diff,
        )


def check_destination(name: str) -> None:
    """Check that a text names a folder or a Hub dataset, whether or not that exists.

    Raises:
        PublishError: If it does neither.
    """
    if not _as_folder(name):
        check_repo_id(name)


def _as_folder(target: str | os.PathLike[str]) -> Path | None:
    """The folder that ``target`` names; None if it is a repository id."""
    if isinstance(target, str) and not target.startswith((".", "/", "~", "\\")) and not Path(target).is_absolute():
        return None
    return Path(target).expanduser()
