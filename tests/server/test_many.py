"""The search of the embedded server over 20,000 records, against plain Python over the same rows, and its time."""

import json
import random
import sqlite3
import time
import uuid
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pytest

from larf_curate.server.inside.text_query import tokenize
from tests.fixtures.server_client import between, make_collection, terms

RECORDS = 20_000
WIDTH = 16
PATIENCE = 15.0
"""Seconds for one search: far more than it takes, far less than reading every record through the API would."""
WORDS = [f"word{place}" for place in range(300)] + ["炸弹", "安全", "作り方", 'say "hi"', "f(x)", "don't", "c++"]


@pytest.fixture(scope="module")
def rows():
    rng = random.Random(11)
    vectors = np.random.default_rng(11).normal(size=(RECORDS, WIDTH)).round(4)
    return [
        {
            "id": f"row-{place}",
            "text": " ".join(rng.choices(WORDS, k=12)),
            "score": rng.random(),
            "split": rng.choice("abc"),
            "vector": vectors[place].tolist(),
        }
        for place in range(RECORDS)
    ]


@pytest.fixture(scope="module")
def collection(argilla_server, rows):
    """The rows, put into Argilla's database behind its back: through the API it would take minutes."""
    made = make_collection(
        argilla_server, fields={"text": "text"}, metadata={"score": "float", "split": "terms"}, vectors={"state": WIDTH}
    )
    setting = made.owner.send("GET", f"/datasets/{made.id}/vectors-settings")["items"][0]["id"]
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
    ids = [uuid.uuid4().hex for _ in rows]
    records = [
        (key, json.dumps({"text": row["text"]}), row["id"], uuid.UUID(made.id).hex, now, now, metadata_of(row))
        for key, row in zip(ids, rows, strict=True)
    ]
    vectors = [
        (json.dumps(row["vector"]), key, uuid.UUID(setting).hex, uuid.uuid4().hex, now, now)
        for key, row in zip(ids, rows, strict=True)
    ]
    with closing(sqlite3.connect(argilla_server.home.database, timeout=60)) as connection, connection:
        columns = "id, fields, external_id, dataset_id, inserted_at, updated_at, metadata, status"
        connection.executemany(f"INSERT INTO records ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, 'pending')", records)
        columns = "value, record_id, vector_settings_id, id, inserted_at, updated_at"
        connection.executemany(f"INSERT INTO vectors ({columns}) VALUES (?, ?, ?, ?, ?, ?)", vectors)
    made.text("word1")  # the text index catches up
    yield made
    made.owner.send("DELETE", f"/datasets/{made.id}")


def metadata_of(row):
    return json.dumps({"score": row["score"], "split": row["split"]})


def scope(name):
    return {"entity": "metadata", "metadata_property": name}


def all_found(collection, body):
    """Every external id that a search finds, page by page, in its order."""
    found, total = collection.search(body)
    while len(found) < total:
        page, again = collection.search(body, offset=len(found))
        assert again == total
        found += page
    return found


def holding(rows, phrase):
    want = tokenize(phrase)
    spots = ((row, tokenize(row["text"])) for row in rows)
    return {
        row["id"]
        for row, have in spots
        if any(have[i : i + len(want)] == want for i in range(len(have) - len(want) + 1))
    }


@pytest.mark.parametrize("phrase", ["word7", "word7 word8", "炸弹", "作り", 'say "hi"', "f(x)", "(f", "don't", "c++"])
def test_a_phrase_is_found_in_as_many_records_as_python_finds(collection, rows, phrase):
    start = time.monotonic()
    quoted = '"' + phrase.replace('"', " ") + '"'
    found, total = collection.search({"query": {"text": {"q": quoted}}}, limit=1000)
    assert time.monotonic() - start < PATIENCE
    want = holding(rows, phrase)
    assert total == len(want)
    assert set(found) <= want
    assert len(found) == min(1000, len(want))


def test_worst_first_goes_through_all_of_them_without_gaps(collection, rows):
    found = all_found(collection, {"sort": [{"scope": scope("score"), "order": "desc"}]})
    assert found == [row["id"] for row in sorted(rows, key=lambda row: -row["score"])]


def test_filters_and_a_text_query_together(collection, rows):
    filters = {"and": [terms(scope("split"), ["b"]), between(scope("score"), ge=0.7)]}
    body = {"query": {"text": {"q": "word1 | word2"}}, "filters": filters}
    either = holding(rows, "word1") | holding(rows, "word2")
    want = {row["id"] for row in rows if row["id"] in either and row["split"] == "b" and row["score"] >= 0.7}
    assert set(all_found(collection, body)) == want
    assert want


def test_the_most_similar_are_those_of_numpy(collection, rows):
    matrix = np.array([row["vector"] for row in rows])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    cosines = matrix @ matrix[123]
    want = [rows[place]["id"] for place in np.argsort(-cosines)[:50]]
    start = time.monotonic()
    vector = {"name": "state", "value": rows[123]["vector"], "order": "most_similar"}
    assert collection.search({"query": {"vector": vector}}, limit=50)[0] == want
    assert time.monotonic() - start < PATIENCE


def test_counts_and_ranges_are_those_of_all_records(collection, rows):
    assert collection.owner.send("GET", f"/datasets/{collection.id}/progress")["total"] == RECORDS
    listed = collection.owner.send("GET", f"/me/datasets/{collection.id}/metadata-properties")["items"]
    metrics = {
        item["name"]: collection.owner.send("GET", f"/metadata-properties/{item['id']}/metrics") for item in listed
    }
    scores = [row["score"] for row in rows]
    assert (metrics["score"]["min"], metrics["score"]["max"]) == pytest.approx((min(scores), max(scores)), abs=1e-4)
    counts = {value["term"]: value["count"] for value in metrics["split"]["values"]}
    assert counts == {split: sum(row["split"] == split for row in rows) for split in "abc"}
