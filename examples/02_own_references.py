"""Score with pairs of your own: an answer that must not be learned, and the one that should be given instead.

    python examples/02_own_references.py MODEL PAIRS ROWS

PAIRS is a json, jsonl, csv or parquet file with the columns prompt, unsafe and safe. The built-in pairs are added to
yours, since a score of few pairs is noisy. The profile is saved: `larf-curate score --profile profile/` uses it too.
"""

import sys

from datasets import load_dataset

from larf_curate import LarfScorer, ReferenceSet, SafetyProfile

model, pairs, rows = sys.argv[1:]
own, builtin = ReferenceSet.load(pairs), ReferenceSet.load("builtin")
references = ReferenceSet(
    unsafe=own.unsafe + builtin.unsafe,
    safe=own.safe + builtin.safe,
    labels=own.labels + builtin.labels,
    source="own and builtin",
)
SafetyProfile.build(model, references, layers="auto").save_pretrained("profile")

profile = SafetyProfile.from_pretrained("profile")
print(f"{len(own)} own pairs of {len(references)}; layers {profile.summary()['layers']}")
ds = load_dataset("json", data_files=rows, split="train").map(LarfScorer(profile), batched=True)
for row in ds.sort("larf_score", reverse=True).select(range(min(3, len(ds)))):
    print(f"{row['larf_score']:6.2f}  {row['larf_status']}")
