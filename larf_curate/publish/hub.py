"""Publishing to a dataset repository on the Hub, in one commit on top of the state that was read."""

import logging
import tempfile
import time
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's

from larf_curate.errors import LarfCurateError, PublishError
from larf_curate.publish.bundle import CARD, Assemble, Bundle, Existing, Publication
from larf_curate.publish.card import decode_card
from larf_curate.publish.hub_errors import STALE_PARENT, check_repo_id, explain, status_of, waits_for
from larf_curate.version import __version__

RETRY_WAITS = (1.0, 2.0, 4.0, 8.0)
INFO_TIMEOUT = 30.0
logger = logging.getLogger(__name__)


class HubTarget:
    """A dataset repository.

    Args:
        repo_id: ``org/name``.
        private: Visibility if it has to be created.
        create_pr: Whether to open a pull request.
        revision: Branch; main if None.
        commit_message: Title of the commit.
        token: Hub token; that of the login if None.
        endpoint: Address of the Hub.

    Raises:
        PublishError: If the id is not one or there is no token.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool,
        create_pr: bool,
        revision: str | None,
        commit_message: str | None,
        token: str | None,
        endpoint: str | None,
    ) -> None:
        check_repo_id(repo_id)
        self.token = token or get_token() or ""
        if not self.token:
            raise PublishError(
                "no Hugging Face token: run `hf auth login`, or set HF_TOKEN to a token with write access"
            )
        self.repo_id, self.private, self.create_pr = repo_id, private, create_pr
        self.revision, self.commit_message = revision, commit_message
        self.api = HfApi(endpoint, self.token, library_name="larf-curate", library_version=__version__)
        self.name = repo_id.split("/")[1]
        self.url = f"{self.api.endpoint}/datasets/{repo_id}"
        self._created = False
        self._unanswered = False
        self._known_pulls: set[str] = set()

    def publish(self, assemble: Assemble, *, dry_run: bool) -> Publication:
        """Read, merge and commit; all again if the repository changed meanwhile or the Hub stumbled, a few times.

        Args:
            assemble: Merges the publication with what the repository holds.
            dry_run: Do all but write.

        Returns:
            What was published, or would be.

        Raises:
            PublishError: If the Hub refuses, or still cannot after the last try.
        """
        waits = [*RETRY_WAITS]
        while True:
            try:
                return self._try(assemble, dry_run=dry_run)
            except LarfCurateError:
                raise
            except (TransportError, OSError, RuntimeError, ValueError) as error:
                wait = waits_for(error, waits.pop(0)) if waits else None
                if wait is None:
                    explained = explain(error, self.repo_id, token=self.token)
                    if explained is error:
                        raise
                    raise explained from error
                self._unanswered = self._unanswered and status_of(error) != STALE_PARENT
                status = status_of(error)
                told = "no answer" if status is None else f"HTTP {status}"
                logger.warning("publishing to %s again in %.0f s (%s)", self.repo_id, wait, told)
                time.sleep(wait)

    def _try(self, assemble: Assemble, *, dry_run: bool) -> Publication:
        existing = self._read(dry_run=dry_run)
        bundle = assemble(existing)
        changed = bundle.differs(existing)
        if dry_run:
            return bundle.publication(existing, self.url, changed=changed, dry_run=True)
        if not changed:  # or our commit arrived, and only its answer was lost
            return bundle.publication(existing, self.url, commit=existing.parent, changed=self._unanswered)
        if self.create_pr and (found := self._own_pull(bundle)):
            commit, pr_url = found
            return bundle.publication(existing, self.url, commit=commit, pr_url=pr_url, changed=True)
        info = self._commit(bundle, existing)
        return bundle.publication(existing, self.url, commit=info.oid, pr_url=info.pr_url, changed=True)

    def _read(self, *, dry_run: bool) -> Existing:
        """What the repository holds at the head of the branch; it is made if it is not there."""
        try:
            info = self._info()
        except GatedRepoError:
            raise
        except RepositoryNotFoundError as error:
            if status_of(error) != 404:
                raise
            if self.revision not in (None, "main"):
                raise PublishError(
                    f"{self.repo_id} is not there yet, so has no branch: publish to main first"
                ) from error
            if dry_run:
                return Existing(private=self.private, created=True)
            self.api.create_repo(self.repo_id, repo_type="dataset", private=self.private, exist_ok=True)
            self._created = True
            info = self._info()
        files = _digests(info)
        card = self._card(info.sha) if CARD in files else None
        return Existing(files=files, card=card, parent=info.sha, private=info.private, created=self._created)

    def _info(self) -> DatasetInfo:
        return self.api.dataset_info(self.repo_id, revision=self.revision, files_metadata=True, timeout=INFO_TIMEOUT)

    def _card(self, revision: str | None) -> str:
        with tempfile.TemporaryDirectory(prefix="larf-curate-") as cache:
            path = self.api.hf_hub_download(self.repo_id, CARD, repo_type="dataset", revision=revision, cache_dir=cache)
            return decode_card(Path(path).read_bytes())

    def _commit(self, bundle: Bundle, existing: Existing) -> CommitInfo:
        if self.create_pr and not self._unanswered:
            self._known_pulls = set(self._pulls())
        additions = [CommitOperationAdd(path, content) for path, content in bundle.files.items()]
        deletions = [CommitOperationDelete(path, is_folder=False) for path in bundle.deleted]
        self._unanswered = True
        return self.api.create_commit(
            self.repo_id,
            [*additions, *deletions],
            commit_message=self.commit_message or f"Publish {bundle.counts['published']} rows with larf-curate",
            repo_type="dataset",
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=existing.parent,
        )

    def _pulls(self) -> dict[str, str]:
        """The head of each pull request, by its reference."""
        refs = self.api.list_repo_refs(self.repo_id, repo_type="dataset", include_pull_requests=True)
        return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}

    def _own_pull(self, bundle: Bundle) -> tuple[str, str] | None:
        """Commit and address of the pull request that an earlier try opened without learning of it."""
        if not self._unanswered:
            return None
        for ref, commit in self._pulls().items():
            if ref in self._known_pulls:
                continue
            info = self.api.dataset_info(self.repo_id, revision=commit, files_metadata=True, timeout=INFO_TIMEOUT)
            if not bundle.differs(Existing(files=_digests(info))):
                return commit, f"{self.url}/discussions/{ref.rsplit('/', 1)[1]}"
        return None


def _digests(info: DatasetInfo) -> dict[str, str]:
    """What the Hub tells of each file's bytes: SHA-256 of large ones, git's blob id of others."""
    return {file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in info.siblings or []}
