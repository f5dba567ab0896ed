"""Recall and speed of exact search (flat), inverted lists (IVF) and graphs (HNSW) by the number of exemplars.

    python -m tests.benchmarks.exemplars --counts 10000 100000 500000 --width 256

Exemplars are drawn around harmful topics of Zipf-distributed sizes, with a variance that falls along the directions as
a power law; of the states that are searched for, half are drawn around the same topics and half around harmless ones.
All are centred by the mean of harmless ones, and searched in a batch of 1,000 by one thread; times are its processor
time. IVF is what `larf_curate.scoring.search` builds if exact search is ruled out; HNSW has the smallest ``efSearch``
that finds 95 % of the nearest 10.
"""

import argparse
import time

import faiss
import numpy as np

from larf_curate.scoring import search
from larf_curate.scoring.search import MIN_RECALL, RECALL_AT, build_search
from larf_curate.signals.protocol import unit

TOPICS = 300
QUERIES = 1000


class States:
    """States around topics, some of them harmful, which are few or many rows."""

    def __init__(self, width, seed=0):
        self.rng = np.random.default_rng(seed)
        self.scale = np.arange(1, width + 1, dtype="f4") ** -0.35
        self.topics = {side: self.normal(TOPICS) for side in ("harmful", "harmless")}
        weights = 1 / np.arange(1, TOPICS + 1)
        self.weights = weights / weights.sum()
        self.centre = self.around("harmless", 2000).mean(axis=0)

    def normal(self, count):
        return self.rng.standard_normal((count, len(self.scale)), dtype="f4") * self.scale

    def around(self, side, count):
        topics = self.rng.choice(TOPICS, size=count, p=self.weights)
        return self.topics[side][topics] + 0.8 * self.normal(count)

    def units(self, side, count):
        return np.ascontiguousarray(unit(self.around(side, count) - self.centre), np.float32)


def timed(function, *args):
    start = time.process_time()  # not wall-clock time, in which other processes would count
    result = function(*args)
    return time.process_time() - start, result


def row(count, kind, built, seconds, found, nearest):
    recall = np.mean([len({*a} & {*b}) / RECALL_AT for a, b in zip(found, nearest, strict=True)])
    print(f"| {count:,} | {kind} | {built:,.1f} | {recall:.3f} | {len(found) / seconds:,.0f} |", flush=True)
    return recall


def measure(count, width, *, hnsw):
    states = States(width)
    vectors = states.units("harmful", count)
    typical = np.concatenate([states.units(side, 200) for side in ("harmful", "harmless")])
    queries = np.concatenate([states.units(side, QUERIES // 2) for side in ("harmful", "harmless")])
    flat = faiss.IndexFlatIP(width)
    built, _ = timed(flat.add, vectors)
    seconds, (_, nearest) = timed(flat.search, queries, RECALL_AT)
    row(count, "flat", built, seconds, nearest, nearest)
    search.EXACT_UP_TO = 0
    built, ivf = timed(build_search, vectors, typical)
    seconds, (_, found) = timed(ivf.index.search, queries, RECALL_AT)
    lists = f", {ivf.index.nprobe} of {ivf.index.nlist:,} lists" if ivf.kind == "ivf" else " (too little found by IVF)"
    row(count, ivf.kind + lists, built, seconds, found, nearest)
    if hnsw:
        graph = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 80
        built, _ = timed(graph.add, vectors)
        for exponent in range(4, 11):
            graph.hnsw.efSearch = 2**exponent
            seconds, (_, found) = timed(graph.search, queries, RECALL_AT)
            if row(count, f"hnsw, efSearch {2**exponent}", built, seconds, found, nearest) >= MIN_RECALL:
                break


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 500_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--no-hnsw", action="store_true")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    print("| exemplars | search | built in s | recall of 10 | states per s |\n| --- | --- | --- | --- | --- |")
    for count in arguments.counts:
        measure(count, arguments.width, hnsw=not arguments.no_hnsw)


if __name__ == "__main__":
    main()
