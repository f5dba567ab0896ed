"""Publishing to a folder: the files that a commit would hold."""

import os
from pathlib import Path

from larf_curate.errors import PublishError
from larf_curate.files import sha256, whole
from larf_curate.publish.bundle import CARD, Assemble, Content, Existing, Publication
from larf_curate.publish.card import decode_card


class FolderTarget:
    """A folder that becomes like a dataset repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name

    def publish(self, assemble: Assemble, *, dry_run: bool) -> Publication:
        """Write the files, each in one step, new ones before old ones go.

        Args:
            assemble: Merges the publication with what the folder holds.
            dry_run: Do all but write.

        Returns:
            What was written, or would be.

        Raises:
            PublishError: If the folder cannot be written or holds other data.
        """
        try:
            existing = self._read()
            bundle = assemble(existing)
            changed = bundle.differs(existing)
            if changed and not dry_run:
                for path, content in bundle.files.items():
                    _write(self.folder / path, content)
                for path in bundle.deleted:
                    (self.folder / path).unlink()
        except OSError as error:
            raise PublishError(
                f"cannot write {self.folder} ({error.strerror or error}): choose another folder"
            ) from error
        return bundle.publication(existing, str(self.folder), changed=changed, dry_run=dry_run)

    def _read(self) -> Existing:
        if self.folder.exists() and not self.folder.is_dir():
            raise PublishError(f"{self.folder} is a file: choose a folder")
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        names = {path.relative_to(self.folder).as_posix(): path for path in paths}
        card = decode_card(names[CARD].read_bytes()) if CARD in names else None
        files = {name: sha256(path) for name, path in names.items()}
        return Existing(files=files, card=card, created=not self.folder.exists())


def _write(path: Path, content: Content) -> None:
    with whole(path) as aside:
        if isinstance(content, bytes):
            aside.write_bytes(content)
        else:
            _copy(content, aside)


def _copy(source: Path, to: Path) -> None:
    """Copy by pieces, with the permissions of any new file."""
    with source.open("rb") as reader, to.open("wb") as writer:
        while piece := reader.read(1 << 20):
            writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())
