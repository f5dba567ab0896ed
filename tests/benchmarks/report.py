"""Size of the report, and first paint in Chromium, by number of rows.

    python -m tests.benchmarks.report --rows 50000 -o FOLDER

The rows are random: states, axes, nearest exemplars, a guard model's verdicts and texts. ``report`` runs in a process
of its own, whose peak of private memory is measured. First paint and the time until the page's script is done are the
median of several loads, as Chromium reports them.

Prints one line of JSON per number of rows.
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
from datasets import Dataset
from playwright.sync_api import sync_playwright

from tests.benchmarks.select_memory import COMMAND, measured
from tests.fixtures.scored_folder import write_scored

WIDTH = 64
ROWS_PER_FILE = 25_000
LOADS = 5
LABELS = ["weapons", "fraud", "privacy", "self-harm"]
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
READY = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000])
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    for rows in arguments.rows:
        folder = arguments.output / str(rows)
        write_scored(folder / "scored", Dataset(made_rows(rows)), pieces=-(-rows // ROWS_PER_FILE))
        page = folder / "report.html"
        cost = measured([*COMMAND, "report", folder / "scored", "-o", page], folder)
        print(json.dumps({"rows": rows, "page_mb": round(page.stat().st_size / 1e6, 2), **cost, **load_times(page)}))


def made_rows(count, *, seed=0):
    """Random scored rows as a table."""
    rng = np.random.default_rng(seed)
    erosion, compliance, harmful = rng.normal(size=(3, count)).astype("f4") * 2
    scores = (erosion + np.maximum(harmful - 2, 0)).astype("f4")
    words = np.array([f"word{index}" for index in range(500)])
    texts = [" ".join(row) for row in words[rng.integers(0, len(words), size=(count, 60))]]
    states = rng.normal(size=(count, WIDTH)) + np.linspace(-1, 1, WIDTH) * scores[:, None]
    return pa.table(
        {
            "prompt": [f"Question {index}: {text[:200]}?" for index, text in enumerate(texts)],
            "response": [f"Answer {index}. {text}" for index, text in enumerate(texts)],
            "split": [("train", "test")[index % 5 == 0] for index in range(count)],
            "larf_score": scores,
            "larf_layer_scores": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(scores, 2)), 2),
            "larf_signals": [
                {"harmful": float(h), "erosion": float(e), "compliance": float(c)}
                for h, e, c in zip(harmful, erosion, compliance, strict=True)
            ],
            "larf_status": ["ok"] * count,
            "larf_neighbors": [
                [{"id": f"reference-{i % 140}", "label": LABELS[i % 4], "cosine": 0.5}] for i in range(count)
            ],
            "larf_guard": [
                {"request": p, "answer": p, "status": "ok"} for p in (1 / (1 + np.exp(-scores))).astype(float).tolist()
            ],
            "larf_state": pa.FixedSizeListArray.from_arrays(pa.array(states.astype("f2").ravel()), WIDTH),
        }
    )


def load_times(page):
    """Milliseconds until the first paint and until the page is ready, medians of several loads."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        times = []
        for _ in range(LOADS):
            tab = browser.new_page()
            tab.goto(page.resolve().as_uri())
            tab.wait_for_function(f"{READY} > 0")
            times.append((tab.evaluate(PAINT), tab.evaluate(READY)))
            tab.close()
        browser.close()
    paint, ready = (round(median(values)) for values in zip(*times, strict=True))
    return {"first_paint_ms": paint, "ready_ms": ready}


if __name__ == "__main__":
    main()
