"""Publishing to a dataset repository on the Hub, in one commit on top of the revision that was read."""

import logging
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetInfo,
    Discussion,
    HfApi,
    get_token,
)
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's

from larf_curate.errors import InputError, LarfCurateError, PublishError
from larf_curate.publish.bundle import CARD, PROVENANCE, Assemble, Bundle, DestinationState, Publication
from larf_curate.publish.card import decode_card
from larf_curate.publish.hub_errors import (
    STALE_PARENT,
    check_ref_name,
    check_repo_id,
    retry_delay,
    status_of,
    to_publish_error,
)
from larf_curate.version import __version__

RETRY_WAITS = (1.0, 2.0, 4.0, 8.0)
INFO_TIMEOUT = 30.0
TITLE = re.compile(r"Publish \d+ rows with larf-curate")
"""Title of the commits and pull requests that publishing makes by default."""
logger = logging.getLogger(__name__)


class HubTarget:
    """A dataset repository on the Hub; it is created by the first publication.

    Args:
        repo_id: ``org/name``.
        private: Visibility of the repository if it has to be created.
        create_pr: Open a pull request instead of committing to the branch.
        branch: The branch (default: ``main``); created from ``main`` if it does not exist.
        tag: Name of a new tag for the published commit.
        commit_message: Title of the commit.
        token: Hub token (default: ``HF_TOKEN`` or the token of ``hf auth login``).
        endpoint: URL of the Hub (default: ``HF_ENDPOINT`` or the public Hub).

    Raises:
        PublishError: If ``repo_id`` is invalid or there is no token.
        InputError: If the name of the branch or tag is invalid, or a pull request shall have either.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool,
        create_pr: bool,
        branch: str | None,
        tag: str | None,
        commit_message: str | None,
        token: str | None,
        endpoint: str | None,
    ) -> None:
        check_repo_id(repo_id)
        for name in (branch, tag):
            if name is not None:
                check_ref_name(name)
        if create_pr and tag:
            raise InputError("wanted a tag or a pull request, got both: tag the commit once it is merged")
        if create_pr and branch not in (None, "main"):
            raise InputError("wanted a branch or a pull request, got both: pull requests are opened against main")
        self.token = token or get_token() or ""
        if not self.token:
            raise PublishError(
                "no Hugging Face token: run `hf auth login`, or set HF_TOKEN to a token with write access"
            )
        if not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise PublishError(  # the token is not quoted: a malformed one may contain most of a real one
                "wanted a Hugging Face token of ASCII characters without spaces: run `hf auth login` or set HF_TOKEN"
            )
        self.repo_id, self.private, self.create_pr = repo_id, private, create_pr
        self.branch, self.tag, self.commit_message = branch, tag, commit_message
        self.api = HfApi(endpoint, self.token, library_name="larf-curate", library_version=__version__)
        self.name = repo_id.split("/")[1]
        self.url = f"{self.api.endpoint}/datasets/{repo_id}"
        self._created = False
        # A commit was sent but no response arrived: the Hub may have made it. The next attempt has to find out, or it
        # would report that nothing changed.
        self._commit_unconfirmed = False

    def publish(self, assemble: Assemble, *, dry_run: bool) -> Publication:
        """Read, merge and commit; retried a few times if the repository changed meanwhile or the Hub failed.

        Args:
            assemble: Merges the publication with the contents of the repository.
            dry_run: Write nothing.

        Returns:
            What was published, or would be with ``dry_run``.

        Raises:
            PublishError: If the Hub rejects the request, or still fails at the last attempt.
        """
        waits = [*RETRY_WAITS]
        while True:
            try:
                return self._attempt(assemble, dry_run=dry_run)
            except LarfCurateError:  # PublishError is a RuntimeError, which the next clause would retry
                raise
            except (TransportError, OSError, RuntimeError, ValueError) as error:
                wait = retry_delay(error, waits.pop(0)) if waits else None
                if wait is None:
                    publish_error = to_publish_error(error, self.repo_id, token=self.token)
                    if publish_error is error:
                        raise
                    raise publish_error from error
                # A stale parent means that the Hub rejected the commit, so it certainly was not made.
                self._commit_unconfirmed = self._commit_unconfirmed and status_of(error) != STALE_PARENT
                status = status_of(error)
                reason = "no response" if status is None else f"HTTP {status}"
                logger.warning("publishing to %s failed (%s), retrying in %.0f s", self.repo_id, reason, wait)
                time.sleep(wait)

    def _attempt(self, assemble: Assemble, *, dry_run: bool) -> Publication:
        current = self._read(dry_run=dry_run)
        bundle = assemble(current)
        changed = bundle.differs(current)
        pull = self._open_pull() if self.create_pr and not current.created else None
        if pull:
            current = self._contents(pull.git_reference, created=False)
            bundle = assemble(current)
            changed = bundle.differs(current)
        pr_url = pull.url if pull else None
        self._check_tag(current, changed=changed)
        if dry_run:
            return bundle.publication(current, self.url, pr_url=pr_url, changed=changed, dry_run=True)
        if not changed:  # published before, or by a commit of ours whose response was lost
            oid, changed = current.parent, self._commit_unconfirmed
        else:
            info = self._commit(bundle, current, pull.git_reference if pull else None)
            oid, pr_url, changed = info.oid, pr_url or info.pr_url, True
        if self.tag:  # exist_ok: it is at this commit, or of an attempt whose response was lost
            self.api.create_tag(self.repo_id, tag=self.tag, revision=oid, repo_type="dataset", exist_ok=True)
        return bundle.publication(current, self.url, commit=oid, pr_url=pr_url, tag=self.tag, changed=changed)

    def _check_tag(self, current: DestinationState, *, changed: bool) -> None:
        """Check, before anything is written, that the tag does not exist, or is at the commit that stays."""
        if not self.tag or current.created:
            return
        refs = self.api.list_repo_refs(self.repo_id, repo_type="dataset")
        taken = [ref.target_commit for ref in refs.tags if ref.name == self.tag]
        if taken and (changed or taken[0] != current.parent):
            raise PublishError(
                f"{self.repo_id} has the tag {self.tag} on another commit ({taken[0][:8]}): give a new name"
            )

    def _read(self, *, dry_run: bool) -> DestinationState:
        """Read the head of the branch; creates the repository if it does not exist, except in a dry run."""
        try:
            return self._contents(self.branch, created=self._created)
        except RevisionNotFoundError:
            if self.branch is None:
                raise
            return self._new_branch(dry_run=dry_run)
        except GatedRepoError:  # a subclass of RepositoryNotFoundError, but the repository exists
            raise
        except RepositoryNotFoundError as error:
            if status_of(error) != 404:  # the client raises this error for some 401 responses, too
                raise
            if dry_run:
                return DestinationState(private=self.private, created=True)
            # exist_ok: an earlier attempt may have created it before its response was lost.
            with suppress(KeyError):  # the client takes the URL from every answer, which some lack if it exists
                self.api.create_repo(self.repo_id, repo_type="dataset", private=self.private, exist_ok=True)
            self._created = True
            if self.branch not in (None, "main"):
                return self._new_branch(dry_run=False)
            return self._contents(self.branch, created=True)

    def _new_branch(self, *, dry_run: bool) -> DestinationState:
        """Create the branch from ``main`` and read it; in a dry run, read ``main``."""
        if dry_run:
            return self._contents(None, created=self._created)
        self.api.create_branch(self.repo_id, branch=str(self.branch), repo_type="dataset", exist_ok=True)
        return self._contents(self.branch, created=self._created)

    def _contents(self, revision: str | None, *, created: bool) -> DestinationState:
        """Read a branch or pull request at its head."""
        info = self.api.dataset_info(self.repo_id, revision=revision, files_metadata=True, timeout=INFO_TIMEOUT)
        files = _digests(info)
        card = decode_card(self._download(CARD, info.sha)) if CARD in files else None
        return DestinationState(
            files=files,
            card=card,
            provenance=self._download(PROVENANCE, info.sha) if PROVENANCE in files else None,
            parent=info.sha,
            private=info.private,
            created=created,
            open_file=partial(self._open_file, revision=info.sha),
        )

    def _download(self, name: str, revision: str | None) -> bytes:
        with self._open_file(name, revision=revision) as path:
            return path.read_bytes()

    @contextmanager
    def _open_file(self, name: str, *, revision: str | None) -> Iterator[Path]:
        """A local copy of a file, which is deleted afterwards."""
        with tempfile.TemporaryDirectory(prefix="larf-curate-") as cache:
            yield Path(
                self.api.hf_hub_download(self.repo_id, name, repo_type="dataset", revision=revision, cache_dir=cache)
            )

    def _commit(self, bundle: Bundle, current: DestinationState, pull: str | None) -> CommitInfo:
        """Make one commit: to the branch, to an open pull request, or to a new one."""
        additions = [CommitOperationAdd(path, content) for path, content in bundle.files.items()]
        deletions = [CommitOperationDelete(path, is_folder=False) for path in bundle.deleted]
        self._commit_unconfirmed = True
        return self.api.create_commit(
            self.repo_id,
            [*additions, *deletions],
            commit_message=self.commit_message or f"Publish {bundle.counts['published']} rows with larf-curate",
            repo_type="dataset",
            revision=pull or self.branch,
            create_pr=self.create_pr and not pull,
            parent_commit=current.parent,
        )

    def _open_pull(self) -> Discussion | None:
        """The first open pull request of this user that publishing has opened, by its title."""
        pulls = self.api.get_repo_discussions(
            self.repo_id,
            repo_type="dataset",
            author=self.api.whoami()["name"],
            discussion_type="pull_request",
            discussion_status="open",
        )
        ours = [pull for pull in pulls if pull.title == self.commit_message or TITLE.fullmatch(pull.title)]
        return min(ours, key=lambda pull: pull.num, default=None)


def _digests(info: DatasetInfo) -> dict[str, str]:
    """Digest of each file by path, as the Hub reports it: hex SHA-256 of LFS files, git's blob id of others."""
    return {file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in info.siblings or []}
