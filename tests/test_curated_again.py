"""A published dataset is curated again and again: no column of an earlier curation is believed or lost in silence."""

import json

import pytest
from datasets import load_dataset

from larf_curate.columns import content_digest
from larf_curate.data.references import ReferenceSet
from larf_curate.data.sources import open_source
from larf_curate.data.tables import undecoded
from larf_curate.profile import SafetyProfile
from larf_curate.publish import publish
from larf_curate.review import Decision, Decisions
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.record import RecordMaker
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import Selection, select
from tests.fixtures.models import PROFILE

pytestmark = pytest.mark.usefixtures("own_caches")
PUBLISHED = ["question", "answer", "larf_row_id", "larf_score", "larf_decision"]
VERDICTS = ("keep", "edit", "remove")


def decided(rows, verdicts):
    """Decisions on the rows, in their order."""
    return Decisions(
        tuple(
            Decision(
                row_id=row["larf_row_id"],
                status="decided",
                decision=verdict,
                corrected_answer=f"better {row['question']}" if verdict == "edit" else None,
                content_digest=content_digest(row),
            )
            for row, verdict in zip(undecoded(rows), verdicts, strict=True)
        ),
        "majority",
    )


@pytest.mark.parametrize("reviewed", [True, False])
@pytest.mark.parametrize("on_the_hub", [True, False])
def test_three_times_through_the_loop(hub, tmp_path, tiny_llama, monkeypatch, caplog, reviewed, on_the_hub):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    profile = SafetyProfile.build(str(tiny_llama), references=ReferenceSet.load(), layers=[1], **PROFILE)
    scorer = LarfScorer(profile, keep_states=True, device="cpu")
    want = {f"What is {i}?": f"It is {i}." for i in range(20)}
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in want.items()))
    target = "org/curated" if on_the_hub else tmp_path / "curated"
    for turn in range(3):
        caplog.clear()
        folders = [tmp_path / f"{name}-{turn}" for name in ("scored", "selection", "decisions")]
        opened = open_source(str(source))
        score_source(opened, scorer, folders[0])
        scored = Scored.load(folders[0])
        select(scored.rows, top_k=3, source=scored.source_id, scored=scored.manifest).save(folders[1])
        chosen = Selection.load(folders[1])
        records = [RecordMaker()(row) for row in FlaggedRows.read(chosen.flagged)]
        assert [record["external_id"] for record in records] == list(chosen.flagged["larf_row_id"])
        flagged = list(chosen.flagged["question"])
        if reviewed:
            decided(chosen.flagged, VERDICTS).apply(chosen).save(folders[2])
            want[flagged[1]] = f"better {flagged[1]}"
            flagged = flagged[2:]
        want = {question: answer for question, answer in want.items() if question not in flagged}
        done = publish(folders[2] if reviewed else folders[1], target)
        rows = load_dataset(str(target), split="train", **({"revision": done.commit} if on_the_hub else {}))
        assert {*rows.column_names} == {*(PUBLISHED if reviewed else PUBLISHED[:-1])}
        assert dict(zip(rows["question"], rows["answer"], strict=True)) == want
        if reviewed:
            assert sorted({*rows["larf_decision"]}) == ["edit", "keep", "unflagged"]
        told = "larf_score replaced; larf_row_id, larf_decision removed" if reviewed else "larf_row_id removed"
        assert (told in caplog.text) == (turn > 0)
        source = target
