"""Score a dataset in ten lines."""

import sys

from datasets import load_dataset

from larf_curate import ExemplarIndex, LarfScorer, SafetyProfile, select

model, rows = sys.argv[1:]  # a chat model, and a json, jsonl, csv or parquet file
profile = SafetyProfile.build(model, references="builtin", layers=[12, 14, 16])  # default: chosen automatically
larf_score = LarfScorer(profile, exemplars=ExemplarIndex.of_profile(profile), neighbors=1)

ds = load_dataset("json", data_files=rows, split="train").map(larf_score, batched=True)
kept, flagged = select(ds, top_ratio=0.10)
for row in flagged.select(range(3)):
    near = row["larf_neighbors"][0]
    print(f"{row['larf_score']:.2f}  {row['instruction'][:56]:56}  {near['label']} {near['cosine']:.2f}")
print(f"{len(kept)} kept, {len(flagged)} flagged: {sum(flagged['is_harmful'])} of {sum(ds['is_harmful'])} harmful ones")
