"""Profile, score, select and report in Python, as the commands do: a run that is interrupted goes on where it was.

    python examples/04_folders_and_report.py MODEL DATASET OUT

DATASET is a Hub id, a folder, or files and globs, of any size: rows are scored shard by shard into OUT/scored.
"""

import sys
from pathlib import Path

from larf_curate import ExemplarIndex, LarfScorer, ReferenceSet, SafetyProfile, select
from larf_curate.data.sources import open_source
from larf_curate.profile.built import built_profile
from larf_curate.report import write_report
from larf_curate.scoring.explanation import explain_flagged
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source

model, dataset, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
profile: SafetyProfile = built_profile(model, ReferenceSet.load("builtin"))  # kept in the cache: built once
profile.save_pretrained(out / "profile")

scorer = LarfScorer(profile, exemplars=ExemplarIndex.of_profile(profile), keep_states=True)
score_source(open_source(dataset), scorer, out / "scored", resume=True)

scored = Scored.load(out / "scored")
selection = select(scored.rows, top_ratio=0.05, source=scored.source_id, scored=scored.manifest)
selection = explain_flagged(selection, profile, rows=10)  # which tokens contribute
selection.save(out / "selection")
print(selection.summary()["counts"])
print(write_report(out / "selection", out / "report.html", profile=profile))
