"""What the local Hub keeps: repositories as commits over content-addressed objects, without any HTTP."""

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

LARGE_SUFFIXES = (".parquet", ".arrow", ".safetensors", ".bin", ".gz", ".zip", ".npz", ".faiss")
YAML_BLOCK = re.compile(r"^\s*---\r?\n([\s\S]*?)\r?\n---[ \t]*(?:\r?\n|$)")


class Refusal(Exception):
    """An HTTP error in the form the Hub gives it: status, ``X-Error-Code`` and a message."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class User:
    """Somebody with a token: the namespaces they may write to, and whether the token may write at all."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.orgs)


@dataclass(frozen=True)
class Entry:
    """One file of a commit: its git blob id, and its SHA-256 if it is stored as a large file."""

    blob: str
    size: int
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob


@dataclass(frozen=True)
class Commit:
    """A snapshot: message, parent, author and every file."""

    oid: str
    title: str
    description: str
    parent: str | None
    author: str
    tree: Mapping[str, Entry]


@dataclass
class Repo:
    """A repository: its commits and what points at them."""

    kind: str
    id: str
    private: bool
    gated: bool | str = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, dict[str, Any]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or commit id names."""
        refs = {**self.tags, **self.branches, **{f"refs/pr/{n}": pull["head"] for n, pull in self.pulls.items()}}
        refs.update({f"refs/heads/{name}": oid for name, oid in self.branches.items()})
        oid = refs.get(revision, revision)
        found = [commit for commit in self.commits.values() if len(oid) >= 7 and commit.oid.startswith(oid)]
        if len(found) != 1:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]


class HubStore:
    """The repositories, and what tests do to them directly."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.lock = threading.RLock()

    def create(self, repo_id: str, *, private: bool = False, kind: str = "dataset") -> Repo:
        """Make a repository with the first commit that the Hub makes."""
        with self.lock:
            repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        self.commit(repo_id, {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}, kind=kind)
        return repo

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str],
        *,
        delete: tuple[str, ...] = (),
        message: str = "initial commit",
        revision: str = "main",
        kind: str = "dataset",
    ) -> str:
        """Commit files behind the client's back; returns the commit id."""
        with self.lock:
            repo = self.repos[kind, repo_id]
            head = repo.branches.get(revision)
            tree = dict(repo.commits[head].tree) if head else {}
            for path in delete:
                del tree[path]
            for path, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                large = path.endswith(LARGE_SUFFIXES)
                if large:
                    repo.large[hashlib.sha256(data).hexdigest()] = data
                tree[path] = self.store(data, large=large)
            repo.branches[revision] = self.add_commit(repo, tree, head, message, "", "larf").oid
            return repo.branches[revision]

    def files(self, repo_id: str, *, revision: str = "main", kind: str = "dataset") -> dict[str, bytes]:
        """The bytes of every file at a revision, ``.gitattributes`` left out."""
        repo = self.repos[kind, repo_id]
        tree = repo.resolve(revision).tree
        return {path: self.content(repo, entry) for path, entry in tree.items() if path != ".gitattributes"}

    def history(self, repo_id: str, *, revision: str = "main", kind: str = "dataset") -> list[Commit]:
        """The commits of a revision, newest first."""
        repo = self.repos[kind, repo_id]
        commits: list[Commit] = [repo.resolve(revision)]
        while commits[-1].parent:
            commits.append(repo.commits[commits[-1].parent])
        return commits

    def store(self, data: bytes, *, large: bool) -> Entry:
        """Keep bytes as git would: a blob, or for a large file a blob that holds the pointer."""
        sha256 = hashlib.sha256(data).hexdigest() if large else None
        kept = _pointer(sha256, len(data)) if sha256 else data
        blob = _git_id("blob", kept)
        self.blobs[blob] = kept
        return Entry(blob, len(data), sha256)

    def content(self, repo: Repo, entry: Entry) -> bytes:
        """The bytes of a file."""
        return repo.large[entry.sha256] if entry.sha256 else self.blobs[entry.blob]

    def add_commit(
        self, repo: Repo, tree: Mapping[str, Entry], parent: str | None, title: str, description: str, author: str
    ) -> Commit:
        """Record a commit; its id covers the tree, the parent, the message and how many there are already."""
        listing = "".join(f"{path} {entry.etag}\n" for path, entry in sorted(tree.items()))
        body = f"{listing}\n{parent}\n{author}\n{title}\n{description}\n{len(repo.commits)}"
        commit = Commit(_git_id("commit", body.encode()), title, description, parent, author, dict(tree))
        repo.commits[commit.oid] = commit
        return commit


def _pointer(sha256: str, size: int) -> bytes:
    """The text git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _git_id(kind: str, data: bytes) -> str:
    """The id git gives an object."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def front_matter(content: str) -> Any:
    match = YAML_BLOCK.match(content)
    try:
        return yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError:
        return None


def yaml_problems(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings in a card's metadata, as ``/api/validate-yaml`` gives them."""
    match = YAML_BLOCK.match(content)
    if not match:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"], []
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    errors = []
    tags = data.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        errors.append('"tags" must be an array of strings')
    configs = data.get("configs", [])
    if not isinstance(configs, list) or not all(isinstance(c, dict) and "config_name" in c for c in configs):
        errors.append('"configs" must be an array of objects with a config_name')
    if not isinstance(data.get("dataset_info", {}), dict | list):
        errors.append('"dataset_info" must be an object or an array')
    return errors, []


def listing(commit: Commit, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """What a folder of a commit holds, folders before the files in them, in the order of their paths."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, entry in sorted(commit.tree.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            name = prefix + "/".join(parts[:depth])
            if depth == 1 or recursive:
                found[name] = {"type": "directory", "oid": _git_id("tree", name.encode()), "size": 0, "path": name}
        if len(parts) == 1 or recursive:
            found[path] = {"type": "file", "oid": entry.blob, "size": entry.size, "path": path}
            if entry.sha256:
                found[path]["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
    return list(found.values())
