"""A plain HTTP client of the real server, and datasets made with it: no Argilla library in between."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import requests

from larf_curate.review.server import EmbeddedServer

BATCH = 500


@dataclass(frozen=True)
class Client:
    """One user's view of the server."""

    url: str
    key: str

    def send(self, method: str, path: str, body: object = None, **query: object):
        """The answer's JSON; raises for an answer that is no success."""
        answer = self.raw(method, path, body, **query)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer.json() if answer.content else None

    def raw(self, method: str, path: str, body: object = None, **query: object) -> requests.Response:
        headers = {"X-Argilla-Api-Key": self.key}
        return requests.request(
            method, f"{self.url}/api/v1{path}", json=body, params=query, headers=headers, timeout=60
        )


@dataclass(frozen=True)
class Collection:
    """A published dataset of the server."""

    owner: Client
    id: str
    questions: Mapping[str, str]

    def push(self, records: Sequence[Mapping[str, object]]) -> None:
        for start in range(0, len(records), BATCH):
            batch = {"items": records[start : start + BATCH]}
            self.owner.send("PUT", f"/datasets/{self.id}/records/bulk", batch)

    def ids(self) -> dict[str, str]:
        """Argilla's id of each record by the id it was pushed with."""
        found, offset = {}, 0
        while items := self.owner.send("GET", f"/datasets/{self.id}/records", limit=1000, offset=offset)["items"]:
            found |= {item["external_id"]: item["id"] for item in items}
            offset += len(items)
        return found

    def search(self, body: Mapping[str, object], *, mine: Client | None = None, limit: int = 1000, offset: int = 0):
        """External ids in the answer's order, and the total; ``mine`` searches as an annotator."""
        path = f"/me/datasets/{self.id}/records/search" if mine else f"/datasets/{self.id}/records/search"
        answer = (mine or self.owner).send("POST", path, body, limit=limit, offset=offset)
        return [item["record"]["external_id"] for item in answer["items"]], answer["total"]

    def text(self, words: str, field: str | None = None) -> set[str]:
        found, total = self.search({"query": {"text": {"q": words, "field": field}}})
        assert total == len(found)
        return set(found)

    def only(self, *filters: Mapping[str, object], mine: Client | None = None) -> set[str]:
        found, total = self.search({"filters": {"and": list(filters)}}, mine=mine)
        assert total == len(found)
        return set(found)


def owner_of(server: EmbeddedServer) -> Client:
    return Client(server.url, server.api_key)


def make_collection(
    server: EmbeddedServer,
    *,
    fields: Mapping[str, str],
    questions: Mapping[str, Mapping[str, object]] | None = None,
    metadata: Mapping[str, str] | None = None,
    vectors: Mapping[str, int] | None = None,
) -> Collection:
    """Publish a dataset of the shape asked for; kinds are Argilla's own words."""
    owner = owner_of(server)
    spaces = owner.send("GET", "/me/workspaces")["items"]
    space = next(space["id"] for space in spaces if space["name"] == "argilla")
    name = f"test-{uuid.uuid4().hex[:8]}"
    dataset = owner.send("POST", "/datasets", {"name": name, "workspace_id": space})["id"]
    for field, kind in fields.items():
        settings = {"type": kind, **({"template": "{{record.fields}}"} if kind == "custom" else {})}
        owner.send(
            "POST",
            f"/datasets/{dataset}/fields",
            {"name": field, "title": field, "required": field == next(iter(fields)), "settings": settings},
        )
    questions = questions or {"decision": labels("keep", "remove")}
    made = {}
    for place, (question, settings) in enumerate(questions.items()):
        body = {"name": question, "title": question, "required": place == 0, "settings": settings}
        made[question] = owner.send("POST", f"/datasets/{dataset}/questions", body)["id"]
    for prop, kind in (metadata or {}).items():
        body = {"name": prop, "title": prop, "settings": {"type": kind}}
        owner.send("POST", f"/datasets/{dataset}/metadata-properties", body)
    for vector, size in (vectors or {}).items():
        owner.send(
            "POST", f"/datasets/{dataset}/vectors-settings", {"name": vector, "title": vector, "dimensions": size}
        )
    owner.send("PUT", f"/datasets/{dataset}/publish")
    return Collection(owner, dataset, made)


def labels(*names: str) -> dict[str, object]:
    return {"type": "label_selection", "options": [{"value": name, "text": name} for name in names]}


def terms(scope: Mapping[str, object], values: Iterable[object]) -> dict[str, object]:
    return {"type": "terms", "scope": scope, "values": list(values)}


def between(scope: Mapping[str, object], **ends: object) -> dict[str, object]:
    return {"type": "range", "scope": scope, **ends}
