"""Rows for the tests of the review queue."""

import numpy as np
from datasets import Dataset

from larf_curate.model_source import ModelSource
from larf_curate.profile import SafetyProfile
from larf_curate.selection import Selection, select

HOSTILE = {
    "script": '<script>alert(1)</script><img src=x onerror="alert(2)">',
    "markdown image": "![x](https://evil.example/?q=1) [link](javascript:alert(1)) $x^2$ `code` | cell |",
    "right to left": "\u202eevil\u202c שלום עולם مرحبا",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f9ff",
    "cjk": "你好，世界。こんにちは",
    "50,000 characters": "word " * 10_000,
    "quotes": "'; DROP TABLE records; -- \" \\ {{ 7*7 }} ${x}",
    "line breaks": "a\r\nb\n\n\tc\u2028d\u2029e\x0bf",
}


def scored(rows, scores=None, *, width=8, seed=0):
    """Rows with the columns that scoring writes; scores fall from row to row unless given."""
    rng = np.random.default_rng(seed)
    if scores is None:
        scores = [1.0 - i / len(rows) for i in range(len(rows))]
    return Dataset.from_list(
        [
            row
            | {
                "larf_score": score,
                "larf_status": "ok" if score is not None else "malformed",
                "larf_layer_scores": [score, -score / 2] if score is not None else None,
                "larf_signals": {"larf": score, "refusal": 0.1},
                "larf_neighbors": [{"id": "fraud-01", "label": "fraud", "cosine": 0.9}],
                "larf_state": rng.normal(size=width).astype("f2").tolist(),
            }
            for row, score in zip(rows, scores, strict=True)
        ]
    )


def questions(n, start=0):
    """Plain question and answer rows."""
    return [{"question": f"What is {i} plus one?", "answer": f"It is {i + 1}."} for i in range(start, start + n)]


def selection(rows=None, *, flagged=3, **given) -> Selection:
    """A selection of which the first rows are flagged."""
    profile = {"layers": [9, 14], "signal": "larf"}
    manifest = {"profile": profile, "source": {"split": "train"}}
    return select(scored(rows or questions(5), **given), top_k=flagged, source="test", scored=manifest)


def fake_profile(states) -> SafetyProfile:
    """A profile whose reference and neutral rows have these states, of shape (n, d), at its one layer."""
    parts = np.array_split(np.asarray(states, np.float32)[:, None], 3)
    sides = dict(zip(("unsafe", "safe", "neutral"), parts, strict=True))
    return SafetyProfile(
        source=ModelSource(model_id="none", revision=None, dtype="float32"),
        template_digest="",
        layers=(9,),
        states={side: {"last": values} for side, values in sides.items()},
        references={"source": "rows", "digest": "", "labels": []},
        neutral={"source": "rows", "digest": "", "rows": len(sides["neutral"])},
        canary={},
        signal="larf",
    )
