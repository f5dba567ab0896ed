"""How fast the embedded Argilla server takes and finds records, and how it holds up with six annotators at once.

python -m tests.benchmarks.review_server --records 20000
"""

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence

from larf_curate.server import EmbeddedServer
from tests.fixtures.server_client import Client, Collection, between, make_collection, terms

VOCABULARY = [f"word{place}" for place in range(2000)] + ["炸弹", "安全", "蛋糕"]


def main() -> None:
    told = argparse.ArgumentParser()
    told.add_argument("--records", type=int, default=20_000)
    told.add_argument("--dimensions", type=int, default=64)
    told.add_argument("--annotators", type=int, default=6)
    args = told.parse_args()
    with tempfile.TemporaryDirectory() as home, EmbeddedServer(home, port=0, say=print) as server:
        made = make_collection(
            server,
            fields={"chat": "chat"},
            metadata={"score": "float", "split": "terms", "assigned": "terms"},
            vectors={"state": args.dimensions},
        )
        start = time.perf_counter()
        names = [f"a{place}" for place in range(args.annotators)]
        made.push(records(args.records, args.dimensions, names))
        took = time.perf_counter() - start
        print(f"push           {args.records / took:8.0f} records/s")
        measure_searches(made)
        clients = [Client(server.url, server.add_user(name).api_key) for name in names]
        measure_annotators(made, clients, [None] * len(names))
        measure_annotators(made, clients, names)


def records(count: int, dimensions: int, names: Sequence[str]) -> list[dict[str, object]]:
    rng = random.Random(0)
    found = []
    for place in range(count):
        text = " ".join(rng.choices(VOCABULARY, k=80))
        found.append(
            {
                "external_id": str(place),
                "fields": {"chat": [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]},
                "metadata": {
                    "score": rng.random(),
                    "split": rng.choice("abc"),
                    "assigned": rng.sample(names, min(2, len(names))),
                },
                "vectors": {"state": [rng.gauss(0, 1) for _ in range(dimensions)]},
            }
        )
    return found


def measure_searches(made: Collection) -> None:
    score = {"entity": "metadata", "metadata_property": "score"}
    split = {"entity": "metadata", "metadata_property": "split"}
    worst_first = [{"scope": score, "order": "desc"}]
    near = {"vector": {"name": "state", "record_id": next(iter(made.ids().values())), "order": "most_similar"}}
    bodies = {
        "worst first": {"sort": worst_first},
        "filtered": {"sort": worst_first, "filters": {"and": [terms(split, ["a"]), between(score, ge=0.5)]}},
        "one word": {"query": {"text": {"q": "word7"}}},
        "common": {"query": {"text": {"q": "word1* | word2*"}}, "sort": worst_first},
        "chinese": {"query": {"text": {"q": "炸弹"}}, "sort": worst_first},
        "similar": {"query": near},
    }
    for name, body in bodies.items():
        times = []
        for _ in range(6):
            start = time.perf_counter()
            _, total = made.search(body, limit=10)
            times.append((time.perf_counter() - start) * 1000)
        print(f"{name:14} {times[0]:8.0f} ms first, {statistics.median(times[1:]):5.0f} ms then ({total} found)")


def measure_annotators(made: Collection, clients: list[Client], assigned: Sequence[str | None], each: int = 50) -> None:
    """Let all annotators answer at once: in the whole queue, or each those that are assigned to a name."""
    times: list[float] = []
    before = stored_answers(made, clients)
    threads = [
        threading.Thread(target=annotate, args=(made, client, name, each, times))
        for client, name in zip(clients, assigned, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    kept = stored_answers(made, clients) - before
    what = "assigned rows" if any(assigned) else "whole queue"
    print(
        f"{len(clients)} annotators, {what}: {len(times)} answers, {kept} kept, "
        f"p50 {statistics.median(times):.0f} ms, p95 {times[int(len(times) * 0.95)]:.0f} ms"
    )


def stored_answers(made: Collection, clients: list[Client]) -> int:
    status = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["submitted"]}
    return sum(made.search({"filters": {"and": [status]}}, mine=client, limit=1)[1] for client in clients)


def annotate(made: Collection, client: Client, assigned: str | None, each: int, times: list[float]) -> None:
    """Take the next pending record, worst first, and answer it."""
    score = {"entity": "metadata", "metadata_property": "score"}
    filters = [{"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}]
    filters += [terms({"entity": "metadata", "metadata_property": "assigned"}, [assigned])] if assigned else []
    body = {"filters": {"and": filters}, "sort": [{"scope": score, "order": "desc"}]}
    path = f"/me/datasets/{made.id}/records/search"
    for _ in range(each):
        record = client.send("POST", path, body, limit=1)["items"][0]["record"]["id"]
        item = {"record_id": record, "status": "submitted", "values": {"decision": {"value": "keep"}}}
        start = time.perf_counter()
        (done,) = client.send("POST", "/me/responses/bulk", {"items": [item]})["items"]
        times.append((time.perf_counter() - start) * 1000)
        assert done["error"] is None


if __name__ == "__main__":
    main()
