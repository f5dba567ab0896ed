"""A small Hub on 127.0.0.1, for the real huggingface_hub client and ``datasets.load_dataset`` to talk to.

It keeps repositories as commits over content-addressed objects, and it refuses what huggingface.co refuses: reading
what is private, writing without the right, unknown repositories, revisions and files, a parent commit that is no longer
the head, large files whose bytes are not what was announced, and cards whose YAML is broken. It does not speak Xet: set
``HF_HUB_DISABLE_XET=1``. Tests can make the next matching requests fail, or run something just before they are served.

    with HubServer() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub_store import (
    LARGE_SUFFIXES,
    Entry,
    HubStore,
    Refusal,
    Repo,
    User,
    front_matter,
    listing,
    yaml_problems,
)

REGULAR_LIMIT = 10 * 1024 * 1024
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Plan:
    """What shall happen to the next requests that match."""

    match: str
    times: int
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "Service Unavailable"
    drop: bool = False
    after: bool = False
    action: Callable[[], object] | None = None


class HubServer(HubStore):
    """The server, and the state tests look at.

    Attributes:
        token: A token of user ``larf``, who may write to ``larf`` and to the organisation ``org``.
        read_token: A token of the same user that may only read.
        other_token: A token of user ``stranger``, who may write to ``stranger`` only.
        page_size: Entries a page of a tree listing.
        requests: ``(method, path, status)`` of everything answered, in order.
    """

    token = "hf_localwritetokenlocalwritetoken00"
    read_token = "hf_localreadtokenlocalreadtoken0000"
    other_token = "hf_localothertokenlocalothertoken00"

    def __init__(self, page_size: int = 1000):
        super().__init__()
        self.users = {
            self.token: User("larf", ("org",)),
            self.read_token: User("larf", ("org",), role="read"),
            self.other_token: User("stranger"),
        }
        self.page_size = page_size
        self.requests: list[tuple[str, str, int]] = []
        self.plans: list[Plan] = []
        self._sockets: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        for open_socket in list(self._sockets):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage(self) -> str:
        """Where large files are downloaded from: another host name, so that clients must not send it the token."""
        return f"http://localhost:{self._server.server_address[1]}"

    def fail_next(
        self,
        status: int | None = 503,
        times: int = 1,
        *,
        match: str = "",
        headers: Mapping[str, str] | None = None,
        message: str = "Service Unavailable",
        drop: bool = False,
        after: bool = False,
    ) -> None:
        """Make the next requests fail whose ``"METHOD /path"`` contains the regular expression ``match``.

        ``drop`` closes the connection with no answer instead of a status; ``after`` lets the request take effect first.
        """
        plan = Plan(match, times, None if drop else status, headers or {}, message, drop, after)
        self.plans.append(plan)

    def before_next(self, match: str, action: Callable[[], object]) -> None:
        """Run something once, just before the next request that matches is served."""
        self.plans.append(Plan(match, 1, action=action))

    def take_plan(self, request: str) -> Plan | None:
        """The plan made for this request, if any, counted down."""
        with self.lock:
            plan = next((plan for plan in self.plans if re.search(plan.match, request)), None)
            if plan:
                plan.times -= 1
                if not plan.times:
                    self.plans.remove(plan)
            return plan


class Handler(BaseHTTPRequestHandler):
    """Routes one connection's requests; ``hub`` is set on a subclass for each server."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.hub._sockets.add(self.connection)

    def finish(self) -> None:
        self.hub._sockets.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError, ValueError):
            super().handle()

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def serve(self) -> None:
        """Answer one request, unless a test planned something else for it."""
        url = urlsplit(self.path)
        self.route_path, self.query = url.path, parse_qs(url.query)
        self.body = self.read_body()
        plan = self.hub.take_plan(f"{self.command} {self.path}")
        if plan and plan.action:
            plan.action()
        if plan and not plan.after and (plan.drop or plan.status):
            return self.fail(plan)
        try:
            with self.hub.lock:
                status, headers, body = self.dispatch()
        except Refusal as refusal:
            status, headers, body = self.refusal(refusal)
        if plan and plan.after:
            return self.fail(plan)
        self.answer(status, headers, body)

    def fail(self, plan: Plan) -> None:
        """Answer as an overloaded proxy would, in HTML, or close the connection."""
        if plan.drop:
            self.hub.requests.append((self.command, self.path, 0))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        page = f"<html><body>{plan.message}</body></html>".encode()
        self.answer(plan.status or 503, {"Content-Type": "text/html", **plan.headers}, page)

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a response; a HEAD keeps the length of the body that it does not send."""
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def refusal(self, refusal: Refusal) -> tuple[int, dict[str, str], bytes]:
        headers = {"Content-Type": "application/json", "X-Error-Message": refusal.message.replace("\n", " ")}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        return refusal.status, headers, json.dumps({"error": refusal.message}).encode()

    def read_body(self) -> bytes:
        """The request's body, sent with a length or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None

    def dispatch(self) -> tuple[int, dict[str, str], bytes]:
        """Find the route and call it with the named parts of its path."""
        for methods, pattern, route in ROUTES:
            match = re.fullmatch(pattern, self.route_path)
            if match and self.command in methods:
                parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                result = route(self, **parts)
                if isinstance(result, tuple):
                    return result
                return 200, {"Content-Type": "application/json"}, json.dumps(result).encode()
        raise Refusal(404, f"no such route: {self.command} {self.route_path}")

    # who asks, and what they may do

    def user(self) -> User | None:
        """Who the token belongs to; None without one; 401 if it is not a token of this Hub."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def repo(self, kind: str, id: str) -> Repo:
        """A repository that the asker may read; one they may not looks as if it were not there."""
        user = self.user()
        repo = self.hub.repos.get((kind.removesuffix("s"), id))
        if repo and (not repo.private or (user and repo.namespace in user.namespaces)):
            return repo
        if user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def writable(self, kind: str, id: str, *, pull: bool = False) -> Repo:
        """A repository that the asker may write to, or only open a pull request on."""
        repo = self.repo(kind, id)
        self.may_write(repo.namespace, pull=pull)
        return repo

    def may_write(self, namespace: str, *, pull: bool = False) -> User:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user.role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to write to this repository.")
        if not pull and namespace not in user.namespaces:
            raise Refusal(403, f'You don\'t have the rights to write under the namespace "{namespace}"')
        return user

    # routes

    def whoami(self) -> dict[str, Any]:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "local", "role": user.role, "createdAt": DATE}
        orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in user.orgs]
        names = {"id": user.name, "name": user.name, "fullname": user.name}
        return {"type": "user", **names, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}

    def validate_yaml(self) -> Any:
        errors, warnings = yaml_problems(self.json().get("content", ""))
        body = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        return (400 if errors else 200), {"Content-Type": "application/json"}, json.dumps(body).encode()

    def create_repo(self) -> Any:
        wanted = self.json()
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        namespace = wanted.get("organization") or user.name
        self.may_write(namespace)
        kind, id = wanted.get("type") or "model", f"{namespace}/{wanted['name']}"
        url = self.hub.endpoint + ("" if kind == "model" else f"/{kind}s") + f"/{id}"
        if (kind, id) in self.hub.repos:
            body = {"error": "You already created this repo", "url": url}
            return 409, {"Content-Type": "application/json"}, json.dumps(body).encode()
        self.hub.create(id, private=wanted.get("visibility") == "private" or bool(wanted.get("private")), kind=kind)
        return {"url": url, "name": id, "id": id}

    def delete_repo(self) -> Any:
        wanted = self.json()
        kind = wanted.get("type") or "model"
        repo = self.writable(kind, f"{wanted.get('organization') or self.whoami()['name']}/{wanted['name']}")
        del self.hub.repos[kind, repo.id]
        return {}

    def info(self, kind: str, id: str, rev: str = "main") -> dict[str, Any]:
        repo = self.repo(kind, id)
        commit = repo.resolve(rev)
        sizes = "blobs" in self.query
        siblings = []
        for path, entry in sorted(commit.tree.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if sizes:
                sibling |= {"size": entry.size, "blobId": entry.blob}
                if entry.sha256:
                    sibling["lfs"] = {"size": entry.size, "sha256": entry.sha256, "pointerSize": 134}
            siblings.append(sibling)
        card = commit.tree.get("README.md")
        data = front_matter(self.hub.content(repo, card).decode("utf-8", "replace")) if card else None
        about = {
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
        }
        dates = {"createdAt": DATE, "lastModified": DATE}
        names = {"_id": repo.id, "id": repo.id, "author": repo.namespace, "sha": commit.oid}
        return {**names, **dates, **about, "cardData": data or {}, "siblings": siblings}

    def tree(self, kind: str, id: str, rev: str, path: str = "") -> Any:
        repo = self.repo(kind, id)
        entries = listing(repo.resolve(rev), path, recursive=self.query.get("recursive") == ["true"])
        if path and not entries:
            raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
        start, limit = int(self.query.get("cursor", ["0"])[0]), self.hub.page_size
        headers = {"Content-Type": "application/json"}
        if start + limit < len(entries):
            kept = "&".join(f"{k}={quote(v[0])}" for k, v in self.query.items() if k != "cursor")
            following = f"{self.hub.endpoint}{self.route_path}?{kept}&cursor={start + limit}"
            headers["Link"] = f'<{following}>; rel="next"'
        return 200, headers, json.dumps(entries[start : start + limit]).encode()

    def paths_info(self, kind: str, id: str, rev: str) -> Any:
        commit = self.repo(kind, id).resolve(rev)
        asked = self.form().get("paths", [])
        entries = {entry["path"]: entry for entry in listing(commit, "", recursive=True)}
        return [entries[path] for path in asked if path in entries]

    def form(self) -> dict[str, list[str]]:
        if "json" in self.headers.get("Content-Type", ""):
            paths = self.json().get("paths", [])
            return {"paths": paths if isinstance(paths, list) else [paths]}
        return parse_qs(self.body.decode())

    def refs(self, kind: str, id: str) -> Any:
        repo = self.repo(kind, id)
        found: dict[str, Any] = {
            "branches": [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()],
            "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()],
            "converts": [],
        }
        if "include_prs" in self.query:
            found["pullRequests"] = [
                {"name": str(n), "ref": f"refs/pr/{n}", "targetCommit": pull["head"]} for n, pull in repo.pulls.items()
            ]
        return found

    def commits(self, kind: str, id: str, rev: str) -> Any:
        repo = self.repo(kind, id)
        return [
            {"id": c.oid, "title": c.title, "message": c.description, "authors": [{"user": c.author}], "date": DATE}
            for c in self.hub.history(repo.id, revision=rev, kind=repo.kind)
        ]

    def branch(self, kind: str, id: str, name: str) -> Any:
        repo = self.writable(kind, id)
        if self.command == "DELETE":
            repo.resolve(name)
            del repo.branches[name]
            return {}
        if name in repo.branches:
            raise Refusal(409, f"Reference {name} already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repo.branches[name] = repo.resolve(start).oid
        return {}

    def tag(self, kind: str, id: str, name: str) -> Any:
        repo = self.writable(kind, id)
        if self.command == "DELETE":
            repo.tags.pop(name)
            return {}
        if self.json()["tag"] in repo.tags:
            raise Refusal(409, f"Tag {self.json()['tag']} already exists")
        repo.tags[self.json()["tag"]] = repo.resolve(name).oid
        return {}

    def settings(self, kind: str, id: str) -> Any:
        repo = self.writable(kind, id)
        wanted = self.json()
        if "visibility" in wanted or "private" in wanted:
            repo.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repo.gated = wanted.get("gated", repo.gated)
        return {"private": repo.private, "gated": repo.gated}

    def preupload(self, kind: str, id: str, rev: str) -> Any:
        repo = self.writable(kind, id, pull="create_pr" in self.query)
        tree = repo.resolve(rev).tree
        files = []
        for file in self.json()["files"]:
            path, known = file["path"], tree.get(file["path"])
            large = path.endswith(LARGE_SUFFIXES) or file["size"] > REGULAR_LIMIT
            mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            files.append(mode | ({"oid": known.etag} if known else {}))
        return {"files": files}

    def large_batch(self, id: str, kind: str = "models") -> Any:
        user = self.user()
        repo = self.repo(kind, id)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        objects = []
        for wanted in self.json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
            if oid not in repo.large:
                where = f"{self.hub.endpoint}/_large/{repo.kind}s/{repo.id}/{oid}"
                upload = {"href": f"{where}?size={size}&signature={self.signature(oid)}"}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{where}/verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def large_put(self, kind: str, id: str, oid: str) -> Any:
        """Take the bytes of a large file at its signed address, if they are the announced ones."""
        self.signed(oid)
        if len(self.body) != int(self.query["size"][0]) or hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(422, "the uploaded bytes do not have the announced size and SHA-256")
        self.hub.repos[kind.removesuffix("s"), id].large[oid] = self.body
        return {}

    def large_get(self, kind: str, id: str, oid: str) -> Any:
        self.signed(oid)
        if "Authorization" in self.headers:
            raise Refusal(400, "the storage host must not be sent a token")
        return self.ranged(self.hub.repos[kind.removesuffix("s"), id].large[oid], {"ETag": f'"{oid}"'})

    def large_verify(self, kind: str, id: str, oid: str) -> Any:
        data = self.repo(kind, id).large.get(oid)
        if data is None or len(data) != self.json()["size"]:
            raise Refusal(422, "the object is not there, or has another size")
        return {}

    def signature(self, oid: str) -> str:
        return hashlib.sha256(f"{id(self.hub)}/{oid}".encode()).hexdigest()

    def signed(self, oid: str) -> None:
        if self.query.get("signature") != [self.signature(oid)]:
            raise Refusal(403, "the signature does not fit")

    def commit(self, kind: str, id: str, rev: str) -> Any:
        """Apply a commit's operations to the head, all or none."""
        pull = "create_pr" in self.query
        repo = self.writable(kind, id, pull=pull)
        user = self.may_write(repo.namespace, pull=pull)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
            raise Refusal(400, "a commit needs a header with a summary")
        head, header = repo.resolve(rev), lines[0]["value"]
        parent = header.get("parentCommit")
        if parent and not pull and not head.oid.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        base = repo.resolve(parent) if parent else head
        tree = dict(base.tree)
        for line in lines[1:]:
            self.apply(repo, tree, line["key"], line["value"])
        made = self.hub.add_commit(repo, tree, base.oid, header["summary"], header.get("description", ""), user.name)
        where = self.hub.endpoint + ("" if repo.kind == "model" else f"/{repo.kind}s") + f"/{repo.id}"
        answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{where}/commit/{made.oid}"}
        if pull:
            number = len(repo.pulls) + 1
            repo.pulls[number] = {"head": made.oid, "title": made.title, "author": user.name, "status": "open"}
            return answer | {"pullRequestUrl": f"{where}/discussions/{number}"}
        if rev in repo.branches:
            repo.branches[rev] = made.oid
        elif rev.startswith("refs/pr/"):
            repo.pulls[int(rev.removeprefix("refs/pr/"))]["head"] = made.oid
        else:
            raise Refusal(400, f"{rev} is not a branch")
        return answer

    def apply(self, repo: Repo, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        """Apply one operation of a commit to its tree."""
        path = value["path"]
        if key == "file":
            tree[path] = self.regular(path, base64.b64decode(value["content"]))
        elif key == "lfsFile":
            data = repo.large.get(value["oid"])
            if data is None or len(data) != value.get("size", len(data)):
                raise Refusal(422, f"LFS pointer pointed to a file that does not exist: {path}")
            tree[path] = self.hub.store(data, large=True)
        elif key in ("deletedFile", "deletedFolder"):
            inside = [n for n in tree if n == path or (key == "deletedFolder" and n.startswith(path.rstrip("/") + "/"))]
            if not inside:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del tree[name]
        else:
            raise Refusal(400, f"unknown operation {key}")

    def regular(self, path: str, data: bytes) -> Entry:
        """Keep a file that came within the commit, unless it should have been a large one or is a broken card."""
        if len(data) > REGULAR_LIMIT or path.endswith(LARGE_SUFFIXES):
            raise Refusal(400, f"{path} must be uploaded as a large file")
        errors = yaml_problems(data.decode("utf-8", "replace"))[0] if path == "README.md" else []
        if errors:
            raise Refusal(400, f"Invalid metadata in README.md: {errors[0]}")
        return self.hub.store(data, large=False)

    def discussions(self, kind: str, id: str) -> Any:
        repo = self.repo(kind, id)
        found = [self.pull(repo, number) for number in sorted(repo.pulls, reverse=True)]
        return {"discussions": found, "count": len(found), "start": 0}

    def pull(self, repo: Repo, number: int) -> dict[str, Any]:
        about = repo.pulls[number]
        author = {"name": about["author"], "type": "user"}
        where = {"repo": {"name": repo.id, "type": repo.kind}, "num": number, "isPullRequest": True, "createdAt": DATE}
        return {"title": about["title"], "status": about["status"], "author": author, **where}

    def discussion(self, kind: str, id: str, number: str) -> Any:
        repo = self.repo(kind, id)
        if int(number) not in repo.pulls:
            raise Refusal(404, "Discussion not found")
        found = self.pull(repo, int(number))
        return found | {
            "events": [],
            "changes": {"base": "refs/heads/main"},
            "filesWithConflicts": False,
            "diffUrl": None,
        }

    def merge(self, kind: str, id: str, number: str) -> Any:
        """Merge a pull request, if its parent is still the head of main."""
        repo = self.writable(kind, id)
        pull = repo.pulls[int(number)]
        commit = repo.commits[pull["head"]]
        if commit.parent != repo.branches["main"]:
            raise Refusal(409, "the pull request conflicts with main")
        repo.branches["main"], pull["status"] = commit.oid, "merged"
        event = {"id": "merge", "type": "status-change", "createdAt": DATE, "author": {"name": pull["author"]}}
        return {"newStatus": event | {"data": {"status": "merged"}}}

    def resolve(self, id: str, rev: str, path: str, kind: str = "models") -> Any:
        """A file's bytes, or for a large file the way to its signed address."""
        repo = self.repo(kind, id)
        commit = repo.resolve(rev)
        entry = commit.tree.get(path)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if entry is None:
            status, error, body = self.refusal(Refusal(404, "Entry not found", "EntryNotFound"))
            return status, error | headers, body
        headers["ETag"] = f'"{entry.etag}"'
        if not entry.sha256:
            return self.ranged(self.hub.content(repo, entry), headers)
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        where = f"{self.hub.storage}/_large/{repo.kind}s/{repo.id}/{entry.sha256}"
        return 302, {**headers, "Location": f"{where}?signature={self.signature(entry.sha256)}"}, b""

    def ranged(self, data: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """All the bytes, or the range asked for."""
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked or asked.group(0) == "bytes=-":
            return 200, headers, data
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            return 416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b""
        return 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]


_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
_FILE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>(?!api/)[^/]+/[^/]+)"
_LARGE = r"/_large/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., Any]]] = [
    (("GET",), r"/api/whoami-v2", Handler.whoami),
    (("POST",), r"/api/validate-yaml", Handler.validate_yaml),
    (("POST",), r"/api/repos/create", Handler.create_repo),
    (("DELETE",), r"/api/repos/delete", Handler.delete_repo),
    (("GET",), _REPO, Handler.info),
    (("GET",), _REPO + r"/revision/(?P<rev>[^/]+)", Handler.info),
    (("GET",), _REPO + r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
    (("POST",), _REPO + r"/paths-info/(?P<rev>[^/]+)", Handler.paths_info),
    (("GET",), _REPO + r"/refs", Handler.refs),
    (("GET",), _REPO + r"/commits/(?P<rev>[^/]+)", Handler.commits),
    (("POST", "DELETE"), _REPO + r"/branch/(?P<name>[^/]+)", Handler.branch),
    (("POST", "DELETE"), _REPO + r"/tag/(?P<name>[^/]+)", Handler.tag),
    (("PUT",), _REPO + r"/settings", Handler.settings),
    (("POST",), _REPO + r"/preupload/(?P<rev>[^/]+)", Handler.preupload),
    (("POST",), _REPO + r"/commit/(?P<rev>[^/]+)", Handler.commit),
    (("GET",), _REPO + r"/discussions", Handler.discussions),
    (("GET",), _REPO + r"/discussions/(?P<number>\d+)", Handler.discussion),
    (("POST",), _REPO + r"/discussions/(?P<number>\d+)/merge", Handler.merge),
    (("POST",), _FILE + r"\.git/info/lfs/objects/batch", Handler.large_batch),
    (("PUT",), _LARGE, Handler.large_put),
    (("GET", "HEAD"), _LARGE, Handler.large_get),
    (("POST",), _LARGE + r"/verify", Handler.large_verify),
    (("GET", "HEAD"), _FILE + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
]
