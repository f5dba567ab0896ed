import pytest

from larf_curate.training.card import model_card
from larf_curate.training.recipe import Recipe


@pytest.mark.parametrize(
    ("options", "paper", "turned"),
    [
        ({"method": "sft", "safe_cosine": 0.2}, "", False),
        ({"method": "sap"}, "after Safety-Aware Probing (SAP", False),
        ({"method": "sap", "safe_cosine": 0.2}, "after Safety-Aware Probing (SAP", True),
        ({"method": "sap", "beta": 0.0, "safe_cosine": 0.2}, "without the probes of Safety-Aware Probing (SAP", True),
        ({"method": "sap", "epsilon": 0.0}, "without the probes of Safety-Aware Probing (SAP", False),
    ],
)
def test_the_card_names_what_was_done(options, paper, turned):
    record = {"recipe": Recipe(**options).to_dict(), "model": "org/model", "rows": "abc", "seed": 0}
    text = model_card(record, rows=8, steps=2).text
    assert paper in text
    assert ("Safety-Aware" in text) == bool(paper)
    assert ("cosine with that of SAP's safety loss is at least 0.2, which is not part" in text) == turned
    assert ("supervised fine-tuning" in text) == (not paper.startswith("after"))
