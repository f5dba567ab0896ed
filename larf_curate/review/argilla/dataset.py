"""A review dataset on the server: found or created, read whole, written in batches."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import argilla as rg

from larf_curate.errors import ReviewError, ReviewServerError
from larf_curate.review.argilla.connection import Connection, clear_errors
from larf_curate.review.argilla.settings import (
    CLUSTER,
    CLUSTER_TITLE,
    PROPOSED,
    SCORE,
    VECTOR,
    VECTOR_TITLE,
    review_settings,
)

PAGE = 500
TERMS = 250
"""The server's limit of values in a filter."""


@dataclass(frozen=True)
class VectorSpace:
    """The vectors of a queue.

    Args:
        id: Their id on the server.
        dimensions: Their width.
        name: Name of the reduction that made them; empty for those of earlier versions.
    """

    id: str
    dimensions: int
    name: str


class RecordStore:
    """One review dataset.

    Args:
        connection: The connection to its server.
        dataset_id: Its id there.
    """

    def __init__(self, connection: Connection, dataset_id: str) -> None:
        self.dataset_id = dataset_id
        self._connection = connection
        self._path = f"/api/v1/datasets/{dataset_id}"
        self.url = self.link()

    @classmethod
    def find(cls, connection: Connection, name: str) -> "RecordStore | None":
        """The review dataset of that name in the workspace; one whose creation was cut off is removed.

        Raises:
            ReviewError: If a dataset of that name is there but is not a review dataset.
        """
        listed = connection.request("GET", "/api/v1/me/datasets")["items"]
        for item in listed:
            if item["name"] == name and item["workspace_id"] == connection.workspace_id:
                store = cls(connection, item["id"])
                if item["status"] != "ready":  # it cannot have records yet
                    connection.send("DELETE", store._path, None)
                    return None
                store._check(name)
                return store
        return None

    @classmethod
    def create(cls, connection: Connection, name: str, *, min_submitted: int) -> "RecordStore":
        """Create and publish a review dataset.

        Args:
            connection: The connection to the server.
            name: Name of the dataset.
            min_submitted: How many annotators must submit before a record counts as done.
        """
        with clear_errors(connection.url):
            settings = review_settings(connection.client, min_submitted=min_submitted)
            dataset = rg.Dataset(
                name=name, workspace=connection.workspace, settings=settings, client=connection.client
            ).create()
        return cls(connection, str(dataset.id))

    def link(self, *, status: str = "pending", proposed: str | None = None) -> str:
        """Address of the queue in the browser, worst first.

        Args:
            status: ``pending``, or ``submitted`` for what the user who opens it has answered.
            proposed: Show only records that carry this mark.
        """
        only = f"&metadata={PROPOSED}.{proposed}" if proposed else ""
        address = f"{self._connection.url}/dataset/{self.dataset_id}/annotation-mode"
        return f"{address}?page=1&status={status}{only}&sort=metadata.{SCORE}.desc"

    def add_missing_properties(self) -> None:
        """Add the metadata properties that a queue made by an earlier version lacks."""
        self.add_property(CLUSTER, CLUSTER_TITLE, "terms")

    def add_property(self, name: str, title: str, kind: str) -> None:
        """Add a metadata property, by which annotators can filter, if the queue lacks it.

        Args:
            name: Its name.
            title: What annotators see.
            kind: ``terms``, ``float`` or ``integer``.
        """
        listed = self._connection.request("GET", f"/api/v1/me/datasets/{self.dataset_id}/metadata-properties")
        if name not in {item["name"] for item in listed["items"]}:
            body = {"name": name, "title": title, "settings": {"type": kind}}
            self._connection.request("POST", f"{self._path}/metadata-properties", body)

    def update_metadata(self, changed: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the metadata of records; all else of them stays, responses too.

        Args:
            changed: The whole new metadata by external id.
        """
        items = [{"external_id": row, "metadata": metadata} for row, metadata in changed.items()]
        for start in range(0, len(items), PAGE):
            self.upsert(json.dumps({"items": items[start : start + PAGE]}, allow_nan=False).encode())

    def vector_space(self) -> VectorSpace | None:
        """The vectors for *find similar* that the queue has, None if it has none."""
        for item in self._connection.request("GET", f"{self._path}/vectors-settings")["items"]:
            if item["name"] == VECTOR:
                name = item["title"].removeprefix(VECTOR_TITLE).strip(" ()")
                return VectorSpace(item["id"], int(item["dimensions"]), name)
        return None

    def set_vector_space(self, name: str, dimensions: int) -> None:
        """Say which reduction the vectors of the queue come from; they are added if it has none.

        Args:
            name: Name of the reduction.
            dimensions: Width of the vectors; that of existing ones cannot be changed.
        """
        title = f"{VECTOR_TITLE} ({name})"
        if (found := self.vector_space()) is not None:
            self._connection.request("PATCH", f"/api/v1/vectors-settings/{found.id}", {"title": title})
            return
        body = {"name": VECTOR, "title": title, "dimensions": dimensions}
        self._connection.request("POST", f"{self._path}/vectors-settings", body)

    def upsert(self, body: bytes) -> None:
        """Create or update records by their external id, all or none; responses stay.

        Args:
            body: JSON ``{"items": [records]}``, at most 500.

        Raises:
            RejectedError: If the server refuses one of them.
        """
        self._connection.send("PUT", f"{self._path}/records/bulk", body)

    def records(self, *, responses: bool) -> Iterator[dict[str, Any]]:
        """All records, each once, as the server gives them.

        Args:
            responses: Whether to include the responses of all annotators.

        Raises:
            ReviewServerError: If the server gives fewer than it says it has.
        """
        seen: set[str] = set()
        offset, total = 0, 1
        while offset < total:
            include = "&include=responses" if responses else ""
            page = self._connection.request("GET", f"{self._path}/records?offset={offset}&limit={PAGE}{include}")
            offset, total = offset + PAGE, page["total"]
            for record in page["items"]:
                if record["id"] not in seen:
                    seen.add(record["id"])
                    yield record
        if len(seen) < total:
            raise ReviewServerError(f"the server listed {len(seen)} of {total} records: run the command again")

    def responses(self, row_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The responses to some records, as they are at this moment.

        Args:
            row_ids: External ids of at most 250 records.

        Returns:
            The server's responses by external id.
        """
        scope = {"entity": "record", "property": "external_id"}
        query = {"filters": {"and": [{"type": "terms", "scope": scope, "values": row_ids}]}}
        path = f"{self._path}/records/search?include=responses&limit={len(row_ids)}"
        found = [item["record"] for item in self._connection.request("POST", path, query)["items"]]
        return {record["external_id"]: record.get("responses") or [] for record in found}

    def _check(self, name: str) -> None:
        questions = {item["name"] for item in self._connection.request("GET", f"{self._path}/questions")["items"]}
        if not {"decision", "corrected_answer"} <= questions:
            raise ReviewError(f"dataset {name!r} on the server is not a review queue of larf-curate: use another name")
