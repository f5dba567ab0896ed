"""Publishing to a folder: the same files as in a commit to the Hub."""

import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from larf_curate.errors import PublishError
from larf_curate.files import atomic_path, sha256
from larf_curate.publish.bundle import CARD, PROVENANCE, Assemble, DestinationState, Publication
from larf_curate.publish.card import decode_card
from larf_curate.publish.content import Content


class FolderTarget:
    """A local folder laid out like a dataset repository.

    Args:
        folder: The folder; created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name

    def publish(self, assemble: Assemble, *, dry_run: bool) -> Publication:
        """Write the files of the publication, each atomically, then delete those of an earlier one.

        Args:
            assemble: Merges the publication with the contents of the folder.
            dry_run: Write nothing.

        Returns:
            What was written, or would be with ``dry_run``.

        Raises:
            PublishError: If the folder cannot be written or holds other data.
        """
        try:
            current = self._read()
            bundle = assemble(current)
            changed = bundle.differs(current)
            self._check_links([*bundle.files, *bundle.deleted])
            if changed and not dry_run:
                # New files first: if writing fails, the files of the earlier publication still exist.
                for path, content in bundle.files.items():
                    _write(self.folder / path, content)
                for path in bundle.deleted:
                    (self.folder / path).unlink()
        except OSError as error:
            raise PublishError(
                f"cannot write {self.folder} ({error.strerror or error}): choose another folder"
            ) from error
        return bundle.publication(current, str(self.folder), changed=changed, dry_run=dry_run)

    def _check_links(self, paths: Iterable[str]) -> None:
        """Check that no folder below the target is a link, through which another folder would be changed."""
        for folder in sorted({(self.folder / path).parent for path in paths}):
            if folder.resolve() != self.folder.resolve() / folder.relative_to(self.folder):
                raise PublishError(f"{folder} is a link to {folder.resolve()}, wanted a folder: remove the link")

    def _read(self) -> DestinationState:
        if self.folder.exists() and not self.folder.is_dir():
            raise PublishError(f"{self.folder} is a file: choose a folder")
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        names = {path.relative_to(self.folder).as_posix(): path for path in paths}
        card = decode_card(names[CARD].read_bytes()) if CARD in names else None
        files = {name: sha256(path) for name, path in names.items()}
        provenance = names[PROVENANCE].read_bytes() if PROVENANCE in names else None
        created = not self.folder.exists()
        return DestinationState(
            files=files,
            card=card,
            provenance=provenance,
            created=created,
            open_file=lambda name: nullcontext(names[name]),
        )


def _write(path: Path, content: Content) -> None:
    with atomic_path(path) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            _copy(content, temporary)


def _copy(source: Path, target: Path) -> None:
    """Copy the bytes of a file, but not its permissions, and flush them to disk."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
