"""A review dataset on the server: found or created, read completely, written in batches."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import argilla as rg

from larf_curate.errors import ReviewError, ReviewServerError
from larf_curate.progress import progress
from larf_curate.review.argilla.connection import Connection, translate_errors
from larf_curate.review.argilla.settings import (
    CLUSTER,
    CLUSTER_TITLE,
    IN_WORDS,
    IN_WORDS_TITLE,
    MACHINE_SCORE,
    MACHINE_SCORE_TITLE,
    PROPOSED,
    SCORE,
    VECTOR,
    VECTOR_TITLE,
    review_settings,
)

PAGE_SIZE = 500
"""Records per request, the server's limit when they are written."""
MAX_FILTER_VALUES = 250
"""The server's limit for one filter."""
NOTES = "larf_curate"
"""Key of this package's notes in the metadata of a dataset."""


@dataclass(frozen=True)
class VectorSpace:
    """The vector field of a queue, as configured on the server.

    Args:
        id: Its id on the server.
        dimensions: Number of dimensions of each vector.
        name: Name of the reduction that computed the vectors; empty if an earlier version of this package pushed them.
    """

    id: str
    dimensions: int
    name: str


class RecordStore:
    """One review dataset on the server.

    Args:
        connection: Connection to the server.
        dataset_id: Id of the dataset on the server.
    """

    def __init__(self, connection: Connection, dataset_id: str) -> None:
        self.dataset_id = dataset_id
        self._connection = connection
        self._path = f"/api/v1/datasets/{dataset_id}"
        self.url = self.link()

    @classmethod
    def find(cls, connection: Connection, name: str) -> "RecordStore | None":
        """Find the review dataset of this name in the workspace; None if there is none.

        A dataset whose creation was interrupted is deleted.

        Args:
            connection: Connection to the server.
            name: Name of the dataset.

        Raises:
            ReviewError: If the dataset of this name is not a review dataset.
        """
        listed = connection.request("GET", "/api/v1/me/datasets")["items"]
        for item in listed:
            if item["name"] == name and item["workspace_id"] == connection.workspace_id:
                store = cls(connection, item["id"])
                if item["status"] != "ready":  # never published, so it cannot have records
                    connection.send("DELETE", store._path, None)
                    return None
                store._check_is_queue(name)
                return store
        return None

    @classmethod
    def create(cls, connection: Connection, name: str, *, min_submitted: int) -> "RecordStore":
        """Create and publish a review dataset.

        Args:
            connection: Connection to the server.
            name: Name of the dataset.
            min_submitted: How many annotators must submit before a record counts as done.
        """
        with translate_errors(connection.api_url):
            settings = review_settings(connection.client, min_submitted=min_submitted)
            dataset = rg.Dataset(
                name=name, workspace=connection.workspace, settings=settings, client=connection.client
            ).create()
        return cls(connection, str(dataset.id))

    @classmethod
    def all(cls, connection: Connection) -> "dict[str, RecordStore]":
        """All review datasets of the workspace by name; other datasets and unfinished ones are left out.

        Args:
            connection: Connection to the server.
        """
        listed = connection.request("GET", "/api/v1/me/datasets")["items"]
        mine = [item for item in listed if item["workspace_id"] == connection.workspace_id]
        stores = {item["name"]: cls(connection, item["id"]) for item in mine if item["status"] == "ready"}
        return {name: store for name, store in sorted(stores.items()) if store._is_queue()}

    def notes(self) -> dict[str, Any]:
        """What this package has noted about the dataset; empty for a queue of an earlier version."""
        return dict((self._connection.request("GET", self._path)["metadata"] or {}).get(NOTES) or {})

    def note(self, **values: Any) -> None:  # noqa: ANN401  JSON values
        """Note something about the dataset, beside what is noted already.

        Args:
            values: JSON values by name.
        """
        metadata = self._connection.request("GET", self._path)["metadata"] or {}
        noted = metadata | {NOTES: (metadata.get(NOTES) or {}) | values}
        if metadata:  # Argilla 2.8 merges the new values into the old object, and then stores neither
            self._connection.request("PATCH", self._path, {"metadata": None})
        self._connection.request("PATCH", self._path, {"metadata": noted})

    def progress(self) -> dict[str, int]:
        """Number of records by status, ``pending`` and ``completed``, and their ``total``."""
        return dict(self._connection.request("GET", f"{self._path}/progress"))

    def question_id(self, name: str) -> str:
        """Id of a question on the server."""
        return str(next(item["id"] for item in self._questions() if item["name"] == name))

    def link(
        self, *, status: str = "pending", proposed: str | None = None, terms: Mapping[str, str] | None = None
    ) -> str:
        """Address of the queue in the browser, worst first.

        Args:
            status: ``pending``, or ``submitted`` or ``draft`` for those answers of the user who opens the link.
            proposed: Show only records with this mark; default: all.
            terms: Show only records with these terms, by metadata property.
        """
        shown = ({PROPOSED: proposed} if proposed else {}) | dict(terms or {})
        filters = "~".join(f"{name}.{quote(term)}" for name, term in shown.items())
        mark_filter = f"&metadata={filters}" if filters else ""
        address = f"{self._connection.url}/dataset/{self.dataset_id}/annotation-mode"
        return f"{address}?page=1&status={status}{mark_filter}&sort=metadata.{SCORE}.desc"

    @property
    def min_submitted(self) -> int:
        """Number of annotators who must submit before a record counts as done."""
        return int(self._connection.request("GET", self._path)["distribution"]["min_submitted"])

    def add_missing_properties(self) -> None:
        """Add the metadata properties that a queue created by an earlier version of this package lacks."""
        self.add_property(CLUSTER, CLUSTER_TITLE, "terms")
        self.add_property(IN_WORDS, IN_WORDS_TITLE, "terms")
        self.add_property(MACHINE_SCORE, MACHINE_SCORE_TITLE, "float")

    def add_property(self, name: str, title: str, kind: str) -> None:
        """Add a metadata property, by which annotators can filter and sort, unless the queue has it.

        Args:
            name: Name of the property.
            title: Title shown to annotators.
            kind: ``terms``, ``float`` or ``integer``.
        """
        listed = self._connection.request("GET", f"/api/v1/me/datasets/{self.dataset_id}/metadata-properties")
        if name not in {item["name"] for item in listed["items"]}:
            body = {"name": name, "title": title, "settings": {"type": kind}}
            self._connection.request("POST", f"{self._path}/metadata-properties", body)

    def update_metadata(self, changed: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the metadata of records; their fields, vectors and responses do not change.

        Args:
            changed: The complete new metadata by external id.
        """
        items = [{"external_id": row, "metadata": metadata} for row, metadata in changed.items()]
        starts = range(0, len(items), PAGE_SIZE)
        for start in progress(starts, label="Update records", unit="batch", leave=False) if items else ():
            self.upsert(json.dumps({"items": items[start : start + PAGE_SIZE]}, allow_nan=False).encode())

    def vector_space(self) -> VectorSpace | None:
        """The queue's vectors for *find similar*; None if it has none."""
        for item in self._connection.request("GET", f"{self._path}/vectors-settings")["items"]:
            if item["name"] == VECTOR:
                # The title is the only editable text of the setting, so it also stores the name of the reduction.
                name = item["title"].removeprefix(VECTOR_TITLE).strip(" ()")
                return VectorSpace(item["id"], int(item["dimensions"]), name)
        return None

    def set_vector_space(self, name: str, dimensions: int) -> None:
        """Record which reduction computes the queue's vectors; the vector field is created if it is missing.

        Args:
            name: Name of the reduction.
            dimensions: Number of dimensions; ignored if the field exists, since the server cannot change it.
        """
        title = f"{VECTOR_TITLE} ({name})"
        if (found := self.vector_space()) is not None:
            self._connection.request("PATCH", f"/api/v1/vectors-settings/{found.id}", {"title": title})
            return
        body = {"name": VECTOR, "title": title, "dimensions": dimensions}
        self._connection.request("POST", f"{self._path}/vectors-settings", body)

    def upsert(self, body: bytes) -> None:
        """Create or update records by their external id, all or none; responses do not change.

        Args:
            body: Encoded JSON ``{"items": [records]}``, at most 500 records.

        Raises:
            RejectedError: If the server rejects any of them.
        """
        self._connection.send("PUT", f"{self._path}/records/bulk", body)

    def records(self, *, responses: bool) -> Iterator[dict[str, Any]]:
        """Iterate over all records, each exactly once, as returned by the server.

        Args:
            responses: Whether to include the responses of all annotators.

        Raises:
            ReviewServerError: If the server returns fewer records than it reports.
        """
        seen: set[str] = set()
        offset, total = 0, 1
        while offset < total:
            include = "&include=responses" if responses else ""
            page = self._connection.request("GET", f"{self._path}/records?offset={offset}&limit={PAGE_SIZE}{include}")
            offset, total = offset + PAGE_SIZE, page["total"]
            for record in page["items"]:
                if record["id"] not in seen:  # pages overlap when records are added in between
                    seen.add(record["id"])
                    yield record
        if len(seen) < total:
            raise ReviewServerError(f"the server listed {len(seen)} of {total} records: run the command again")

    def responses(self, row_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Current responses to some records.

        Args:
            row_ids: External ids of at most 250 records.

        Returns:
            Responses by external id, as returned by the server.
        """
        scope = {"entity": "record", "property": "external_id"}
        query = {"filters": {"and": [{"type": "terms", "scope": scope, "values": row_ids}]}}
        path = f"{self._path}/records/search?include=responses&limit={len(row_ids)}"
        found = [item["record"] for item in self._connection.request("POST", path, query)["items"]]
        return {record["external_id"]: record.get("responses") or [] for record in found}

    def _questions(self) -> list[dict[str, Any]]:
        return list(self._connection.request("GET", f"{self._path}/questions")["items"])

    def _is_queue(self) -> bool:
        return {"decision", "corrected_answer"} <= {item["name"] for item in self._questions()}

    def _check_is_queue(self, name: str) -> None:
        if not self._is_queue():
            raise ReviewError(f"dataset {name!r} on the server is not a review queue of larf-curate: use another name")
