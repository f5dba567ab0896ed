"""A scoring run whose folder is in an object store: its plan, shards, journal and manifest are objects.

A run works in a folder of this machine, for files that are incomplete and for small copies, and each complete object is
put into the store, from where the other processes of the run know it. Puts are conditional where the first of several
processes counts: so no locks are needed. One listing tells what is complete, since the name of an entry of the journal
says all that is in it.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.errors import InputError
from larf_curate.files import atomic_path, cache_home
from larf_curate.manifests import PLAN, SCORED, ShardRecord
from larf_curate.remote import Remote, is_url, object_version, open_writable, remember_url, remembered_url, writing
from larf_curate.verification import is_remembered, remember

ENTRIES = ".journal"
"""Folder of the journal in the store: a folder for each shard, with an object for each content of it."""
CRASHES = ".crashes"
"""Folder of the notes that a process which scored has died."""
ENTRY = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})-(\d+)-(\d+)")
"""Name of an entry: digests of the plan and of the shard, and the shard's number of rows and size."""
THREADS = 16
"""Number of requests at once."""


def run_folder(out: str | Path) -> Path:
    """The folder of this machine in which a run works: the given one, or for a URL one in the cache.

    Raises:
        InputError: If the URL is not one that results can be written to, or has credentials.
        MissingExtraError: If the library of its store is not installed.
    """
    if not is_url(out):
        return Path(out)
    url = open_writable(str(out)).url
    name = hashlib.sha256(url.encode()).hexdigest()[:32]
    remember_url(name, url)
    folder = _runs() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def location(folder: Path) -> str | Path:
    """What `run_folder` makes the folder from, on any machine."""
    store = store_of(folder)
    return store.remote.url if store else folder.absolute()


def store_of(folder: Path) -> "RunStore | None":
    """The store of a run that works in a folder of this machine; None if the folder itself has the results.

    Raises:
        InputError: If the cache no longer tells which store it is.
    """
    if folder.parent != _runs():
        return None
    url = remembered_url(folder.name)
    if url is None:  # the folder must not get what belongs into the store
        raise InputError(f"{_runs().parent} was removed while rows were scored: continue with --resume")
    return RunStore(remote=open_writable(url))


def _runs() -> Path:
    return cache_home() / "remote" / "runs"


@dataclass(frozen=True, kw_only=True)
class RunStore:
    """The objects of a run.

    Args:
        remote: Where they are.
    """

    remote: Remote

    def names(self) -> list[str]:
        """Names of all objects; none if there is nothing yet."""
        return list(self._listed())

    def fetch(self, folder: Path) -> list[str]:
        """Copy the plan and the manifest, as far as they are there, and return the names of all objects."""
        names = self.names()
        for name in (PLAN, SCORED.file):
            if name not in names:
                (folder / name).unlink(missing_ok=True)
                continue
            self._copy(folder, name)
        return names

    def fetch_manifest(self, folder: Path) -> bool:
        """Copy the manifest that another process may have put since `fetch`; returns whether there is one."""
        there = self._info(SCORED.file) is not None
        if there:
            self._copy(folder, SCORED.file)
        return there

    def read(self, name: str) -> bytes:
        """Content of an object.

        Raises:
            OSError: If it cannot be read.
        """
        with writing(self.remote.url, verb="read"):
            content: bytes = self.remote.files.cat_file(self._path(name))
        return content

    def put(self, folder: Path, file: str, name: str | None = None) -> None:
        """Put a file of a folder under its name or another, in place of an object of that name if there is one."""
        with writing(self.remote.url):
            self.remote.files.put_file(str(folder / file), self._path(name or file))

    def put_first(self, file: Path, name: str) -> bool:
        """Put a file unless another process has been faster; returns whether it was put."""
        with writing(self.remote.url):
            try:
                self.remote.files.put_file(str(file), self._path(name), mode="create")
            except FileExistsError:
                return False
            except Exception:  # libraries of stores have errors of their own for this
                if self._info(name) is None:
                    raise
                return False
        return True

    def record(self, shard: ShardRecord, *, plan: str, entry: bytes) -> None:
        """Put an entry into the journal."""
        name = f"{plan}-{shard['sha256']}-{shard['rows']}-{shard.get('bytes', 0)}"
        with writing(self.remote.url):
            self.remote.files.pipe_file(self._path(f"{ENTRIES}/{shard['file']}/{name}"), entry)

    def records(self, plan: str, manifest: Iterable[ShardRecord]) -> dict[str, list[ShardRecord]]:
        """Records of the complete shards by name.

        What the journal has is compared by size; what the manifest has, when the run is finished, by content, as is a
        shard of which the journal has several contents.

        Args:
            plan: Hex SHA-256 of the run's plan.
            manifest: Records in the manifest of the run, if it is finished.
        """
        listed = self._listed()
        records = _entries(listed, plan)
        complete = {name: self._of_size(records[name], listed[name]) for name in records if name in listed}
        finished = [shard for shard in manifest if shard["file"] in listed]
        verified = self._unchanged(finished, listed)
        complete |= {shard["file"]: [shard] for shard, same in zip(finished, verified, strict=True) if same}
        return {name: found for name, found in complete.items() if found}

    def record_of(self, name: str, plan: str, finished: Callable[[], Iterable[ShardRecord]]) -> ShardRecord | None:
        """Record of a shard if it is there and complete, by its content: this is asked only of shards in doubt.

        Args:
            name: Name of the shard.
            plan: Hex SHA-256 of the run's plan.
            finished: Reads the records of the manifest, which replaces the journal when another process finishes the
                run; called only if the journal has none of this content.
        """
        if self._info(name) is None:
            return None
        digest = hashlib.sha256(self.read(name)).hexdigest()
        with writing(self.remote.url, verb="read"):
            self.remote.files.invalidate_cache()
            found = self.remote.files.find(self._path(f"{ENTRIES}/{name}"))
        entries = [f"{ENTRIES}/{name}/{path.rpartition('/')[2]}" for path in found]
        recorded = _entries(entries, plan).get(name, ())
        if first := next((shard for shard in recorded if shard["sha256"] == digest), None):
            return first
        # After the journal, which is removed when the manifest is there.
        return next((shard for shard in finished() if (shard["file"], shard["sha256"]) == (name, digest)), None)

    def finish(self, folder: Path) -> None:
        """Put the manifest, then remove the journal."""
        self.put(folder, SCORED.file)
        with suppress(OSError), writing(self.remote.url):  # the run is complete all the same
            self.remote.remove([name for name in self.names() if name.startswith((f"{ENTRIES}/", f"{CRASHES}/"))])

    def note_crash(self, run: str) -> None:
        """Note that a process which scored has died."""
        with writing(self.remote.url):
            self.remote.files.pipe_file(self._path(f"{CRASHES}/{run}"), b"{}")

    def crashes(self) -> list[str]:
        """Processes that have died, or may yet."""
        with writing(self.remote.url, verb="read"):
            self.remote.files.invalidate_cache()
            return [str(path).rpartition("/")[2] for path in self.remote.files.find(self._path(CRASHES))]

    def forget_crash(self, run: str) -> None:
        """Remove the note of `note_crash`."""
        with suppress(OSError), writing(self.remote.url):
            self.remote.remove([f"{CRASHES}/{run}"])

    def columns(self, names: Sequence[str], column: str) -> list[pa.ChunkedArray]:
        """A column of each of some shards, of which little else is read."""
        listed = self._listed()  # so that none must be asked for its size
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda name: self._column(name, column, listed.get(name, {}).get("size")), names))

    def _column(self, name: str, column: str, size: int | None) -> pa.ChunkedArray:
        with (
            writing(self.remote.url, verb="read"),
            self.remote.files.open(self._path(name), "rb", cache_type="none", size=size) as file,
        ):
            return pq.ParquetFile(file, pre_buffer=True).read([column])[0]

    def _copy(self, folder: Path, name: str) -> None:
        with atomic_path(folder / name) as temporary:  # other processes of this machine read it
            temporary.write_bytes(self.read(name))

    def _path(self, name: str) -> str:
        return f"{self.remote.path}/{name}"

    def _listed(self) -> dict[str, dict[str, Any]]:
        with writing(self.remote.url, verb="read"):
            return self.remote.list()

    def _info(self, name: str) -> dict[str, Any] | None:
        try:
            with writing(self.remote.url, verb="read"):
                self.remote.files.invalidate_cache()
                info: dict[str, Any] = self.remote.files.info(self._path(name))
        except OSError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return info

    def _of_size(self, shards: Sequence[ShardRecord], info: Mapping[str, Any]) -> list[ShardRecord]:
        """Those of several records of a shard that fit an object; one at most, by its content if need be."""
        fitting = [shard for shard in shards if shard.get("bytes") == info["size"]]
        if len(fitting) < 2:
            return fitting
        digest = hashlib.sha256(self.read(fitting[0]["file"])).hexdigest()
        return [shard for shard in fitting if shard["sha256"] == digest]

    def _unchanged(self, shards: Sequence[ShardRecord], listed: Mapping[str, Mapping[str, Any]]) -> list[bool]:
        """Whether each of some shards has its recorded content; each version of an object is read once."""
        versions = [object_version(listed[shard["file"]]) for shard in shards]
        marks = [f"{self.remote.url}/{shard['file']} {v}" for shard, v in zip(shards, versions, strict=True)]
        known = [is_remembered(mark, shard["sha256"]) for mark, shard in zip(marks, shards, strict=True)]
        doubtful = [place for place, is_known in enumerate(known) if not is_known]
        with ThreadPoolExecutor(THREADS) as pool:
            same = list(pool.map(lambda place: self._has_content(shards[place], listed), doubtful))
        for place, is_same in zip(doubtful, same, strict=True):
            known[place] = is_same
            if is_same and versions[place]:
                remember(marks[place], shards[place]["sha256"])
        return known

    def _has_content(self, shard: ShardRecord, listed: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether an object has its recorded content; it is read if it has the size."""
        if listed[shard["file"]]["size"] != shard.get("bytes"):
            return False
        return hashlib.sha256(self.read(shard["file"])).hexdigest() == shard["sha256"]


def _entries(names: Iterable[str], plan: str) -> dict[str, list[ShardRecord]]:
    """Records of the journal by name of the shard; those of another run are left out."""
    records: dict[str, list[ShardRecord]] = defaultdict(list)
    for name in names:
        folder, _, rest = name.partition("/")
        shard, _, entry = rest.partition("/")
        found = ENTRY.fullmatch(entry)
        if folder == ENTRIES and found and found[1] == plan:
            record = {"file": shard, "rows": int(found[3]), "bytes": int(found[4]), "sha256": found[2]}
            records[shard].append(cast(ShardRecord, record))
    return records
