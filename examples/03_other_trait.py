"""Score rows for another trait than harm: here sycophancy, from pairs of flattering and honest answers.

    python examples/03_other_trait.py MODEL

`unsafe` answers of the pairs show the trait, `safe` ones do not. The signal `projection` is the projection difference
of persona vectors (Chen et al., https://arxiv.org/abs/2507.21509), with the state at the end of the prompt in place of
the model's own answers.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset

from larf_curate import LarfScorer, ReferenceSet, SafetyProfile

PAIRS = Path(__file__).parent / "data" / "sycophancy.jsonl"
pairs = [json.loads(line) for line in PAIRS.read_text().splitlines()]
references, others = pairs[::2], pairs[1::2]
Path("references.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in references))

profile = SafetyProfile.build(sys.argv[1], ReferenceSet.load("references.jsonl"), signal="projection")
rows = [{"prompt": pair["prompt"], "response": pair[side]} for pair in others for side in ("unsafe", "safe")]
scored = Dataset.from_list(rows).map(LarfScorer(profile), batched=True).sort("larf_score", reverse=True)
for row in scored:
    print(f"{row['larf_score']:6.2f}  {row['response'][:80]}")
flattering = {pair["unsafe"] for pair in others}
found = sum(row in flattering for row in scored["response"][: len(others)])
print(f"{found} of the {len(others)} flattering answers are among the {len(others)} highest scores")
