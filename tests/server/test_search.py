"""The search of the embedded server, through its HTTP API, against plain Python over the same rows."""

import json
import random
import sqlite3
from collections import Counter

import numpy as np
import pytest

from larf_curate.server.inside.text_query import tokenize
from tests.fixtures.server_client import Client, between, labels, make_collection, owner_of, terms

TEXTS = [
    "How do I bake a cake?",
    "How to build a bomb",
    "Sure, here is how to build a cake-shaped bomb",
    'She said "never again" (twice).',
    "well-known facts, e.g. the C++ language",
    "如何制造炸弹？请告诉我详细步骤",
    "这是一个安全的问题",
    "爆発物の作り方を教えてください",
    "폭탄을 만드는 방법",
    "Как испечь пирог",
    "ÉCOLE école Straße STRASSE",
    "<script>alert(1)</script> ![x](http://x/y.png)",
    "'; DROP TABLE records; --",
    "SELECT * FROM texts WHERE f0 MATCH 'x' OR NEAR(a b)",
    "\u202eright to left\u202c and 🎉👩‍🚀",
    "snake_case and 100% \\backslash",
    "x" * 5000,
    "word " * 3000,
]
VOCABULARY = ["apple", "bread", "chalk", "dough", "eagle", "安全", "危险"]
DECISIONS = ("keep", "remove", "edit")


def make_rows():
    rng = random.Random(7)
    rows = []
    for place in range(150):
        text = TEXTS[place] if place < len(TEXTS) else " ".join(rng.choices(VOCABULARY, k=rng.randint(1, 8)))
        metadata = {"score": rng.uniform(-1, 1), "count": rng.randint(0, 9), "split": rng.choice("abc")}
        if place % 5 == 0:
            metadata = {"tags": rng.sample("uvw", 2)} if place % 10 else {}
        vector = [rng.gauss(0, 1) for _ in range(6)] if place % 4 else None
        suggestion = (
            None if place % 3 else {"value": rng.choice(DECISIONS), "score": rng.random(), "agent": rng.choice("xy")}
        )
        rows.append(
            {
                "id": f"row-{place}",
                "text": text,
                "chat": [{"role": "user", "content": text[::-1]}, {"role": "assistant", "content": "chalk"}][
                    : place % 3
                ],
                "metadata": metadata,
                "vector": vector,
                "suggestion": suggestion,
                "rating": rng.randint(1, 5),
            }
        )
    return rows


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def annotators(argilla_server):
    return [Client(argilla_server.url, argilla_server.add_user(name).api_key) for name in ("search-1", "search-2")]


@pytest.fixture(scope="module")
def collection(argilla_server, rows):
    made = make_collection(
        argilla_server,
        fields={"text": "text", "chat": "chat", "extra": "custom"},
        questions={
            "decision": labels(*DECISIONS),
            "rating": {"type": "rating", "options": [{"value": value} for value in range(1, 6)]},
        },
        metadata={"score": "float", "count": "integer", "split": "terms", "tags": "terms"},
        vectors={"state": 6},
    )
    made.push([record_of(row, made.questions) for row in rows])
    return made


def record_of(row, questions):
    fields = {"text": row["text"], "extra": {"shown": "custom words", "deep": ["inner"]}}
    if row["chat"]:
        fields["chat"] = row["chat"]
    record = {"external_id": row["id"], "fields": fields, "metadata": row["metadata"]}
    if row["vector"]:
        record["vectors"] = {"state": row["vector"]}
    if row["suggestion"]:
        record["suggestions"] = [{"question_id": questions["decision"], **row["suggestion"]}]
    return record


@pytest.fixture(scope="module")
def responses(collection, annotators, rows):
    """What both annotators answered, as {(annotator, row id): (status, values)}."""
    rng, given, ids = random.Random(3), {}, collection.ids()
    for place, annotator in enumerate(annotators):
        items = []
        for row in rng.sample(rows, 60):
            status = rng.choice(("submitted", "discarded", "draft"))
            values = {"decision": rng.choice(DECISIONS), "rating": row["rating"]}
            wrapped = {name: {"value": value} for name, value in values.items()}
            items.append({"values": wrapped, "status": status, "record_id": ids[row["id"]]})
            given[place, row["id"]] = (status, values)
        answer = annotator.send("POST", "/me/responses/bulk", {"items": items})
        assert all(item["error"] is None for item in answer["items"])
    return given


def holds(text, phrase, *, prefix=False):
    """Whether the phrase's tokens follow each other in the text."""
    have, want = tokenize(text), tokenize(phrase)
    for start in range(len(have) - len(want) + 1):
        part = have[start : start + len(want)]
        if part == want or (prefix and part[:-1] == want[:-1] and part[-1].startswith(want[-1])):
            return True
    return False


def all_texts(row):
    return [row["text"], "\n".join(turn["content"] for turn in row["chat"]), "custom words\ninner"]


def rows_with(rows, *phrases, prefix=False):
    return {
        row["id"]
        for row in rows
        if all(any(holds(text, phrase, prefix=prefix) for text in all_texts(row)) for phrase in phrases)
    }


@pytest.mark.parametrize(
    "phrase",
    [
        "cake",
        "CAKE",
        "never again",
        "well-known",
        "制造炸弹",
        "炸",
        "作り方",
        "방법",
        "пирог",
        "école",
        "strasse",
        "c++",
    ]
    + ["snake_case", "drop table", "alert", "inner", "100", "危险 安全", "危险", "absent"],
)
def test_a_phrase_is_found_in_every_field(collection, rows, phrase):
    assert collection.text(f'"{phrase}"') == rows_with(rows, phrase)


def test_words_are_joined_by_and_or_not(collection, rows):
    apple, bread, chalk = (rows_with(rows, word) for word in ("apple", "bread", "chalk"))
    everything = {row["id"] for row in rows}
    assert collection.text("apple bread") == apple & bread
    assert collection.text("apple | bread") == apple | bread
    assert collection.text("apple -bread") == apple - bread
    assert collection.text("-apple -bread") == everything - apple - bread
    assert collection.text("-(apple | bread)") == everything - apple - bread
    assert collection.text("(apple | bread) -chalk") == (apple | bread) - chalk
    assert collection.text("-apple | chalk") == (everything - apple) | chalk
    assert collection.text("appl*") == apple
    assert collection.text("ba* do*") == rows_with(rows, "ba", "do", prefix=True)
    assert 0 < len(apple & bread) < len(apple) < len(everything)


def test_a_query_can_be_limited_to_one_field(collection, rows):
    in_text = {row["id"] for row in rows if holds(row["text"], "chalk")}
    in_chat = {
        row["id"] for row in rows if len(row["chat"]) == 2 or any(holds(t["content"], "chalk") for t in row["chat"])
    }
    assert collection.text("chalk", "text") == in_text
    assert collection.text("chalk", "chat") == in_chat
    assert in_text != in_chat


def test_hostile_queries_answer_and_find_what_their_words_say(collection, rows):
    for query in (
        '"',
        "(((",
        "a OR",
        "NEAR(",
        "'; DROP TABLE records; --",
        "* ^ ~2 {f0}: x",
        "\\",
        "f0:apple",
        "🎉",
        "-",
        "\u202e",
    ):
        answer = collection.owner.raw(
            "POST", f"/datasets/{collection.id}/records/search", {"query": {"text": {"q": query}}}
        )
        assert answer.status_code == 200, query
    assert collection.text("🎉 !!!") == set()
    assert collection.text("';--") == set()
    assert collection.text("f0:apple") == rows_with(rows, "f0 apple")
    assert len(collection.ids()) == len(rows)


def test_too_many_words_are_refused_clearly(collection):
    body = {"query": {"text": {"q": " ".join(f"w{i}" for i in range(300))}}}
    answer = collection.owner.raw("POST", f"/datasets/{collection.id}/records/search", body)
    assert answer.status_code == 422
    assert "200 words" in answer.text


def test_the_best_match_comes_first(collection):
    found, _ = collection.search({"query": {"text": {"q": "bomb | cake | shaped"}}})
    assert found[0] == "row-2"


def test_metadata_filters_choose_what_python_chooses(collection, rows):
    def where(test):
        return {row["id"] for row in rows if test(row["metadata"])}

    def scope(name):
        return {"entity": "metadata", "metadata_property": name}

    assert collection.only(between(scope("score"), ge=0.25)) == where(lambda m: m.get("score", -9) >= 0.25)
    assert collection.only(between(scope("score"), ge=-0.5, le=0.5)) == where(
        lambda m: -0.5 <= m.get("score", 9) <= 0.5
    )
    assert collection.only(between(scope("count"), le=3)) == where(lambda m: m.get("count", 9) <= 3)
    assert collection.only(terms(scope("count"), ["2", "4"])) == where(lambda m: m.get("count") in (2, 4))
    assert collection.only(terms(scope("split"), ["a", "c"])) == where(lambda m: m.get("split") in ("a", "c"))
    assert collection.only(terms(scope("tags"), ["u"])) == where(lambda m: "u" in m.get("tags", ()))
    both = collection.only(terms(scope("split"), ["a"]), between(scope("score"), ge=0))
    assert both == where(lambda m: m.get("split") == "a" and m["score"] >= 0)
    assert both


def test_a_filter_and_a_text_query_apply_together(collection, rows):
    body = {
        "query": {"text": {"q": "apple"}},
        "filters": {"and": [terms({"entity": "metadata", "metadata_property": "split"}, ["b"])]},
    }
    found, total = collection.search(body)
    assert set(found) == {i for i in rows_with(rows, "apple") if rows[int(i[4:])]["metadata"].get("split") == "b"}
    assert total == len(found) > 0


def test_record_filters_choose_by_id_status_and_time(collection, rows):
    ids = collection.ids()
    scope = {"entity": "record", "property": "id"}
    assert collection.only(terms(scope, [ids["row-3"], ids["row-9"]])) == {"row-3", "row-9"}
    assert collection.only(terms({**scope, "property": "external_id"}, ["row-4"])) == {"row-4"}
    assert collection.only(terms({**scope, "property": "status"}, ["pending", "completed"])) == set(ids)
    timed = {**scope, "property": "inserted_at"}
    assert collection.only(between(timed, ge="2020-01-31T10:00:00Z")) == set(ids)
    assert collection.only(between(timed, le="2020-01-31T10:00:00+02:00")) == set()
    bad = {"filters": {"and": [between(timed, ge="yesterday")]}}
    assert collection.owner.raw("POST", f"/datasets/{collection.id}/records/search", bad).status_code == 422


def test_suggestion_filters_choose_what_python_chooses(collection, rows):
    def where(test):
        return {row["id"] for row in rows if row["suggestion"] and test(row["suggestion"])}

    def scope(name):
        return {"entity": "suggestion", "question": "decision", "property": name}

    assert collection.only(terms(scope("value"), ["remove"])) == where(lambda s: s["value"] == "remove")
    assert collection.only(terms(scope("agent"), ["x"])) == where(lambda s: s["agent"] == "x")
    assert collection.only(between(scope("score"), ge=0.5)) == where(lambda s: s["score"] >= 0.5)
    assert where(lambda s: s["score"] >= 0.5)


def test_response_filters_are_each_users_own(collection, annotators, rows, responses):
    status = {"entity": "response", "property": "status"}
    for place, annotator in enumerate(annotators):
        mine = {row: answer for (who, row), answer in responses.items() if who == place}
        for wanted in (["submitted"], ["draft", "discarded"], ["pending"], ["pending", "submitted"]):
            want = {row["id"] for row in rows if (mine[row["id"]][0] if row["id"] in mine else "pending") in wanted}
            assert collection.only(terms(status, wanted), mine=annotator) == want
        removed = {row for row, (_, values) in mine.items() if values["decision"] == "remove"}
        question = {"entity": "response", "question": "decision"}
        assert collection.only(terms(question, ["remove"]), mine=annotator) == removed
        rated = {row for row, (_, values) in mine.items() if values["rating"] >= 4}
        assert collection.only(between({"entity": "response", "question": "rating"}, ge=4), mine=annotator) == rated


def test_the_owner_filters_by_anybodys_response(collection, rows, responses):
    submitted = {row for (_, row), (status, _) in responses.items() if status == "submitted"}
    answered = {row for _, row in responses}
    status = {"entity": "response", "property": "status"}
    assert collection.only(terms(status, ["submitted"])) == submitted
    assert collection.only(terms(status, ["pending"])) == {row["id"] for row in rows} - answered


def test_sorting_puts_missing_values_last_in_both_directions(collection, rows):
    scope = {"entity": "metadata", "metadata_property": "score"}
    for order, sign in (("asc", 1), ("desc", -1)):
        found, _ = collection.search({"sort": [{"scope": scope, "order": order}]})
        have = sorted((row for row in rows if "score" in row["metadata"]), key=lambda r: sign * r["metadata"]["score"])
        assert found[: len(have)] == [row["id"] for row in have]
        assert len(found) == len(rows) > len(have)


def test_sorts_combine_and_pages_join_without_gaps(collection, rows):
    sort = [
        {"scope": {"entity": "metadata", "metadata_property": "count"}, "order": "desc"},
        {"scope": {"entity": "record", "property": "external_id"}, "order": "asc"},
    ]
    whole, _ = collection.search({"sort": sort})
    key = {row["id"]: (-row["metadata"].get("count", -1), row["id"]) for row in rows}
    assert whole == sorted(key, key=key.__getitem__)
    pages = [collection.search({"sort": sort}, limit=40, offset=start)[0] for start in range(0, 160, 40)]
    assert [row for page in pages for row in page] == whole


def test_sorting_by_suggestion_and_by_own_response(collection, annotators, rows, responses):
    scope = {"entity": "suggestion", "question": "decision", "property": "score"}
    found, _ = collection.search({"sort": [{"scope": scope, "order": "desc"}]})
    scored = sorted((row for row in rows if row["suggestion"]), key=lambda row: -row["suggestion"]["score"])
    assert found[: len(scored)] == [row["id"] for row in scored]
    scope = {"entity": "response", "question": "rating"}
    found, _ = collection.search({"sort": [{"scope": scope, "order": "asc"}]}, mine=annotators[0])
    ratings = [responses[0, row][1]["rating"] for row in found if (0, row) in responses]
    assert ratings == sorted(ratings)
    assert all((0, row) in responses for row in found[: len(ratings)])


def test_without_an_order_each_annotator_has_a_stable_one_of_their_own(collection, annotators, rows):
    first, second = (collection.search({}, mine=annotator)[0] for annotator in annotators)
    assert sorted(first) == sorted(second) == sorted(row["id"] for row in rows)
    assert first != second
    assert first == collection.search({}, mine=annotators[0])[0]
    assert collection.search({}, mine=annotators[0], limit=10, offset=20)[0] == first[20:30]


@pytest.mark.parametrize("order", ["most_similar", "least_similar"])
def test_similarity_ranks_as_numpy_does(collection, rows, order):
    have = [row for row in rows if row["vector"]]
    probe = rows[1]
    matrix = np.array([row["vector"] for row in have])
    cosine = matrix @ np.array(probe["vector"]) / np.linalg.norm(matrix, axis=1) / np.linalg.norm(probe["vector"])
    ranked = [have[place]["id"] for place in np.argsort(-cosine if order == "most_similar" else cosine)]
    by_value = {"query": {"vector": {"name": "state", "value": probe["vector"], "order": order}}}
    assert collection.search(by_value, limit=50)[0] == ranked[:50]
    by_record = {"query": {"vector": {"name": "state", "record_id": collection.ids()["row-1"], "order": order}}}
    assert collection.search(by_record, limit=50)[0] == [row for row in ranked if row != "row-1"][:50]


def test_similarity_reports_the_scaled_cosine_and_keeps_to_filters(collection, rows):
    vector = {"name": "state", "record_id": collection.ids()["row-1"], "order": "most_similar"}
    body = {"query": {"vector": vector, "text": {"q": "apple"}}, "filters": {"and": [split_filter("a", "b")]}}
    answer = collection.owner.send("POST", f"/datasets/{collection.id}/records/search", body, limit=100)
    found = {item["record"]["external_id"]: item["query_score"] for item in answer["items"]}
    allowed = {i for i in rows_with(rows, "apple") if rows[int(i[4:])]["metadata"].get("split") in ("a", "b")}
    want = {i for i in allowed if rows[int(i[4:])]["vector"] and i != "row-1"}
    assert set(found) == want
    assert want
    probe = np.array(rows[1]["vector"])
    for row, score in found.items():
        other = np.array(rows[int(row[4:])]["vector"])
        cosine = probe @ other / np.linalg.norm(probe) / np.linalg.norm(other)
        assert score == pytest.approx((1 + cosine) / 2, abs=1e-5)


def split_filter(*values):
    return terms({"entity": "metadata", "metadata_property": "split"}, values)


def test_progress_and_metadata_metrics_count_what_is_there(collection, annotators, rows, responses):
    progress = collection.owner.send("GET", f"/datasets/{collection.id}/progress")
    completed = {row for (_, row), (status, _) in responses.items() if status == "submitted"}
    assert (progress["total"], progress["completed"]) == (len(rows), len(completed))
    mine = annotators[0].send("GET", f"/me/datasets/{collection.id}/metrics")["responses"]
    counts = Counter(status for (who, _), (status, _) in responses.items() if who == 0)
    assert mine == {"total": len(rows), "pending": len(rows) - 60, **counts}
    assert metrics(collection, "count") == {"type": "integer", **ends(rows, "count")}
    assert metrics(collection, "score") == pytest.approx({"type": "float", **ends(rows, "score")}, abs=1e-5)
    tags = Counter(tag for row in rows for tag in row["metadata"].get("tags", ()))
    found = metrics(collection, "tags")
    assert found["total"] == sum(tags.values())
    assert {value["term"]: value["count"] for value in found["values"]} == tags
    assert [value["count"] for value in found["values"]] == sorted(tags.values(), reverse=True)


def ends(rows, name):
    values = [row["metadata"][name] for row in rows if name in row["metadata"]]
    return {"min": min(values), "max": max(values)}


def metrics(collection, name):
    properties = collection.owner.send("GET", f"/me/datasets/{collection.id}/metadata-properties")["items"]
    found = next(item["id"] for item in properties if item["name"] == name)
    return collection.owner.send("GET", f"/metadata-properties/{found}/metrics")


def test_changed_and_deleted_records_are_found_as_they_are_now(argilla_server):
    made = make_collection(argilla_server, fields={"text": "text"}, vectors={"state": 2})
    made.push([{"external_id": "a", "fields": {"text": "before"}, "vectors": {"state": [1, 0]}}])
    made.push([{"external_id": "b", "fields": {"text": "before"}, "vectors": {"state": [0, 1]}}])
    nearest = {"query": {"vector": {"name": "state", "value": [1, 0.1], "order": "most_similar"}}}
    assert made.text("before") == {"a", "b"}
    assert made.search(nearest)[0] == ["a", "b"]
    made.push([{"external_id": "a", "fields": {"text": "after"}, "vectors": {"state": [-1, 0]}}])
    assert (made.text("before"), made.text("after")) == ({"b"}, {"a"})
    assert made.search(nearest)[0] == ["b", "a"]
    made.owner.send("DELETE", f"/datasets/{made.id}/records", ids=made.ids()["b"])
    assert made.text("before | after") == {"a"}
    assert made.search(nearest)[0] == ["a"]


def test_a_text_index_that_lost_or_kept_too_much_makes_itself_good(argilla_server):
    made = make_collection(argilla_server, fields={"text": "text"})
    made.push([{"external_id": str(i), "fields": {"text": f"number {i}"}} for i in range(20)])
    name = f"docs_{made.id.replace('-', '')}"
    with sqlite3.connect(argilla_server.home.path / "search.db", timeout=30) as connection:
        connection.execute(f"DELETE FROM {name} WHERE rowid % 3 = 0")
        connection.execute(f"UPDATE {name} SET changed = 'long ago' WHERE rowid % 3 = 1")
        connection.execute(f"INSERT INTO {name} (record, changed) VALUES ('gone', 'gone')")
    connection.close()
    assert made.text("number") == {str(i) for i in range(20)}
    assert made.text("7") == {"7"}
    with sqlite3.connect(argilla_server.home.path / "search.db", timeout=30) as connection:
        assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (20,)
    connection.close()


def test_a_change_that_the_index_missed_is_found_even_if_a_later_one_was_indexed(argilla_server):
    made = make_collection(argilla_server, fields={"text": "text"})
    made.push([{"external_id": name, "fields": {"text": f"first {name}"}} for name in "abc"])
    assert made.text("first") == {"a", "b", "c"}
    # Two pushes at once: the one with the earlier time is committed last, and its update of the index is lost.
    with sqlite3.connect(argilla_server.home.database, timeout=30) as connection:
        connection.execute(
            "UPDATE records SET fields = ?, updated_at = datetime(updated_at, '-1 minute')"
            " WHERE dataset_id = ? AND external_id = 'a'",
            (json.dumps({"text": "second a"}), made.id.replace("-", "")),
        )
    connection.close()
    assert made.text("second") == {"a"}
    assert made.text("first") == {"b", "c"}


WORDS = 100_000
TOO_LONG = {
    "words": "word " * WORDS,
    "alternatives": "word | " * WORDS,
    "one phrase": '"' + "word " * WORDS + '"',
    "brackets": "(" * WORDS,
    "minus signs": "-" * WORDS,
    "without spaces": "\u5b89" * WORDS,
}


@pytest.mark.parametrize("words", TOO_LONG.values(), ids=TOO_LONG)
def test_a_search_for_too_much_is_refused_before_it_is_parsed(argilla_server, words):
    made = make_collection(argilla_server, fields={"text": "text"}, vectors={"state": 2})
    made.push([{"external_id": "a", "fields": {"text": "word"}, "vectors": {"state": [1, 0]}}])
    text = {"text": {"q": words}}
    for query in (text, text | {"vector": {"name": "state", "value": [1, 0]}}):
        answer = made.owner.raw("POST", f"/datasets/{made.id}/records/search", {"query": query})
        assert answer.status_code == 422
        assert "at most 2000 characters" in answer.text


def test_a_search_as_long_as_allowed_is_answered(argilla_server):
    made = make_collection(argilla_server, fields={"text": "text"})
    phrase = "\u5b89\u5168" * 999
    made.push([{"external_id": "a", "fields": {"text": f"x{phrase}y"}}])
    assert made.text(f'"{phrase}"') == {"a"}


@pytest.mark.parametrize("number", [10**20, -(10**20), 2**63])
def test_a_page_beyond_all_numbers_is_an_error_of_the_request(argilla_server, number):
    made = make_collection(argilla_server, fields={"text": "text"})
    made.push([{"external_id": "a", "fields": {"text": "word"}}])
    for query in ({}, {"query": {"text": {"q": "word"}}}):
        for user in ("", "/me"):
            path = f"{user}/datasets/{made.id}/records/search"
            assert made.owner.raw("POST", path, query, offset=number).status_code == 422
    for name in ("offset", "limit"):
        assert made.owner.raw("GET", f"/datasets/{made.id}/records", **{name: number}).status_code == 422
    assert made.owner.raw("GET", f"/datasets/{made.id}/records", offset=2**63 - 1).json()["items"] == []


def test_a_deleted_dataset_leaves_no_index(argilla_server):
    made = make_collection(argilla_server, fields={"text": "text"})
    made.push([{"external_id": "a", "fields": {"text": "something"}}])
    made.owner.send("DELETE", f"/datasets/{made.id}")
    with sqlite3.connect(argilla_server.home.path / "search.db", timeout=30) as connection:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name LIKE ?", (f"%{made.id.replace('-', '')}%",))
        assert found.fetchone() is None
    connection.close()


def test_the_status_page_names_the_engine(argilla_server):
    assert owner_of(argilla_server).send("GET", "/status")["search_engine"]["name"] == "larf-curate"


def test_suggestions_and_responses_that_come_and_go_are_found_as_they_are_now(argilla_server, annotators):
    made = make_collection(argilla_server, fields={"text": "text"})
    made.push([{"external_id": name, "fields": {"text": name}} for name in "ab"])
    ids, mine = made.ids(), annotators[0]
    value = {"entity": "suggestion", "question": "decision", "property": "value"}
    submitted = terms({"entity": "response", "property": "status"}, ["submitted"])
    suggestion = {"question_id": made.questions["decision"], "value": "remove", "type": "model", "score": 0.5}
    kept = made.owner.send("PUT", f"/records/{ids['a']}/suggestions", suggestion)
    assert made.only(terms(value, ["remove"])) == {"a"}
    made.owner.send("PUT", f"/records/{ids['a']}/suggestions", suggestion | {"value": "keep"})
    assert (made.only(terms(value, ["remove"])), made.only(terms(value, ["keep"]))) == (set(), {"a"})
    made.owner.send("DELETE", f"/records/{ids['a']}/suggestions", ids=kept["id"])
    assert made.only(terms(value, ["keep"])) == set()

    answer = {"values": {"decision": {"value": "keep"}}, "status": "submitted"}
    response = mine.send("POST", f"/records/{ids['b']}/responses", answer)
    assert made.only(submitted, mine=mine) == {"b"}
    assert made.owner.send("GET", f"/datasets/{made.id}/progress")["completed"] == 1
    decided = terms({"entity": "response", "question": "decision"}, ["remove"])
    mine.send("PUT", f"/responses/{response['id']}", answer | {"values": {"decision": {"value": "remove"}}})
    assert made.only(decided, mine=mine) == {"b"}
    mine.send("DELETE", f"/responses/{response['id']}")
    assert made.only(submitted, mine=mine) == set()
    assert made.owner.send("GET", f"/datasets/{made.id}/progress")["completed"] == 0
