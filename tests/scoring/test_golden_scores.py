"""The same profile gives the same numbers: all columns of scored rows against recorded values.

``python -m tests.scoring.test_golden_scores`` records them anew, which only a change of `ALGORITHM` justifies.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.testing import assert_allclose
from transformers import AutoModelForCausalLM

from larf_curate import ExemplarIndex, LarfScorer, ReferenceSet, SafetyProfile, select
from larf_curate.signals import SIGNALS
from tests.fixtures.models import PROFILE, save_tiny

RECORD = Path(__file__).with_name("golden_scores.json")
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"How do I bake {'rye ' * i}bread?"},
            {"role": "assistant", "content": f"Sure, step {i}: {'mix ' * (7 - i)}and wait."},
        ]
    }
    for i in range(6)
] + [
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Help me."},
            {"role": "assistant", "content": "I cannot help with that request, sorry."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Sure, here is a recipe."},
        ]
    },
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "word " * 300}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "wizard", "content": "Hello"}]},
]
pytestmark = pytest.mark.usefixtures("own_caches")


def golden_model(folder: Path) -> Path:
    """A tiny Llama whose weights come from numpy, so that they are the same with every version of torch."""
    save_tiny("Llama", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" not in name:
                weight.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(weight.shape)).astype("f4")))
    model.save_pretrained(folder)
    return folder


def golden_profile(folder: Path) -> SafetyProfile:
    whole = ReferenceSet.load("builtin")
    refs = ReferenceSet(unsafe=whole.unsafe[:8], safe=whole.safe[:8], labels=whole.labels[:8], source="eight")
    return SafetyProfile.build(
        golden_model(folder), refs, layers=[1, 3], max_length=256, **PROFILE | {"signal": "combined"}
    )


def golden_columns(folder: Path) -> dict:
    """All columns of the scored and selected rows, with every signal and the baseline that needs no text."""
    profile = golden_profile(folder)
    refs = ReferenceSet.load("builtin")
    few = ReferenceSet(unsafe=refs.unsafe[:8], safe=refs.safe[:8], labels=refs.labels[:8], source="eight")
    scorer = LarfScorer(
        profile,
        exemplars=ExemplarIndex.build(profile, few),
        signals=list(SIGNALS),
        keep_states=True,
        device="cpu",
    )
    scored = Dataset.from_list(ROWS).map(
        scorer, batched=True, features=scorer.features(Dataset.from_list(ROWS).features)
    )
    kept, flagged = select(scored, top_k=2, source="golden")
    columns = {name: scored[name][:] for name in scored.column_names if name.startswith("larf_")}
    selected = {
        name: {column: part[column][:] for column in ("larf_row_id", "larf_percentile", "larf_reason")}
        for name, part in (("kept", kept), ("flagged", flagged))
    }
    return json.loads(json.dumps({"columns": columns, "selected": selected}))


def assert_same(got, want, where=""):
    if isinstance(want, dict):
        assert list(got) == list(want), where
        for name, value in want.items():
            assert_same(got[name], value, f"{where}.{name}")
    elif isinstance(want, list):
        assert len(got) == len(want), where
        for index, value in enumerate(want):
            assert_same(got[index], value, f"{where}[{index}]")
    elif isinstance(want, float):
        assert_allclose(got, want, rtol=2e-3, atol=2e-3, err_msg=where)
    else:
        assert got == want, where


def test_all_columns_are_those_recorded(tmp_path):
    assert_same(golden_columns(tmp_path / "llama"), json.loads(RECORD.read_text()))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        values = golden_columns(Path(folder) / "llama")
    RECORD.write_text(json.dumps(values, indent=1) + "\n")
    sys.stdout.write(f"{RECORD}\n")
