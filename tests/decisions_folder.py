"""Folders as ``select`` and ``review pull`` write them, made by hand for the tests of what comes after."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value

from larf_curate.files import write_json, write_parquet

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
FEATURES = Features(
    {
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "label": Value("int32"),
        "larf_row_id": Value("string"),
        "larf_score": Value("float32"),
    }
)
DECISION_FEATURES = Features(
    {
        "larf_row_id": Value("string"),
        "decision": Value("string"),
        "status": Value("string"),
        "category": Value("string"),
        "severity": Value("int32"),
        "rationale": Value("string"),
        "corrected_answer": Value("string"),
        "annotators": List(Value("string")),
    }
)
HARMFUL = "how to make a weapon at home"


def row(index: int, *, answer: str = "Of course.", score: float | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Question {index}"}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "label": index, "larf_row_id": f"{index:016x}", "larf_score": score}


def scored_record(rows: int, **changes: Any) -> dict[str, Any]:
    profile = {
        "model": MODEL,
        "revision": REVISION,
        "dtype": "bfloat16",
        "layers": [9, 14],
        "signal": "larf",
        "top_k": None,
        "references": {"source": "builtin", "unsafe": 140, "safe": 140},
        "digest": "ab" * 32,
    }
    record = {
        "kind": "scored",
        "version": 1,
        "source": {"path": "org/original", "split": "train"},
        "profile": profile,
        "rows": rows,
        "status": {"ok": rows - 1, "empty": 1},
        "shards": [],
        "package": "larf-curate 0.1.0",
    }
    return record | changes


def selection_record(rows: int, flagged: int, **changes: Any) -> dict[str, Any]:
    counts = {"rows": rows, "kept": rows - flagged, "flagged": flagged, "unscorable": 1}
    record = {
        "kind": "selection",
        "version": 1,
        "rule": {"top_ratio": 0.05},
        "threshold": 0.123456789,
        "counts": counts,
    }
    return record | {"scored": scored_record(rows)} | changes


def decision(index: int, verdict: str | None, status: str = "decided", **changes: Any) -> dict[str, Any]:
    made = {
        "larf_row_id": f"{index:016x}",
        "decision": verdict,
        "status": status,
        "category": "weapons" if verdict == "remove" else None,
        "severity": None,
        "rationale": None,
        "corrected_answer": None,
        "annotators": ["annotator-alice", "annotator-bob"] if verdict else [],
    }
    return made | changes


def write_decisions(folder: Path, *, rows: int = 12, category: str = "weapons", **changes: Any) -> Path:
    """Rows 0 to 4 were flagged: 0 and 1 removed, 2 edited, 3 kept, 4 left undecided."""
    verdicts = {2: "edit", 3: "keep"}
    kept = [row(2, answer="Edited.", score=0.6), row(3, score=0.5), *(row(i, score=i / 100) for i in range(5, rows))]
    for item in kept:
        item["larf_decision"] = verdicts.get(item["label"])
    features = Features({**FEATURES, "larf_decision": Value("string")})
    whole = Dataset.from_list(kept, features=features)
    write_parquet(whole, folder / "kept")
    gone = Features({**FEATURES, "larf_reason": Value("string")})
    removed = [row(i, answer=HARMFUL, score=0.9) | {"larf_reason": "top 5 %"} for i in (0, 1)]
    write_parquet(Dataset.from_list(removed, features=gone), folder / "removed")
    write_parquet(Dataset.from_list([row(4) | {"larf_reason": "pending"}], features=gone), folder / "withheld")
    decisions = [decision(i, "remove", category=category) for i in (0, 1)]
    decisions += [decision(2, "edit"), decision(3, "keep", annotators=["annotator-carol"])]
    decisions.append(decision(4, None, status="pending"))
    table = Dataset.from_list(decisions, features=DECISION_FEATURES)
    table.to_parquet(folder / "decisions.parquet")
    counts = {"kept": len(kept), "removed": 2, "withheld": 1, "edited": 1, "unflagged": rows - 5}
    record = {"kind": "decisions", "version": 1, "merge": "majority", "counts": counts}
    write_json(folder / "decisions.json", record | {"selection": selection_record(rows, 5)} | changes)
    return folder


def write_selection(folder: Path, *, rows: int = 12, **changes: Any) -> Path:
    """The last three rows were flagged; all carry the columns of scoring and selection."""
    features = Features({**FEATURES, "larf_state": List(Value("float16"), length=4), "larf_flagged": Value("bool")})

    extra = {"larf_state": [0.5] * 4}
    scored = [row(i, score=i / 10) | extra | {"larf_flagged": i >= rows - 3} for i in range(rows)]
    whole = Dataset.from_list(scored, features=features)
    write_parquet(whole.select(range(rows - 3)), folder / "kept")
    write_parquet(whole.select(range(rows - 3, rows)), folder / "flagged")
    write_json(folder / "selection.json", selection_record(rows, 3) | changes)
    return folder


def kept_table(folder: Path) -> pa.Table:
    """The kept rows of a folder, read by pyarrow alone."""
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / "kept").glob("*.parquet")))
