import pytest
import torch
from datasets import Dataset

from larf_curate.errors import InputError
from larf_curate.evaluation.task_metrics import exact_match, held_out_loss, last_number, load_questions
from tests.fixtures.tiny import byte_model, byte_tokenizer
from tests.fixtures.training_rows import tiny_rows

TOKENIZER = byte_tokenizer()


def test_the_last_number_is_the_answer():
    assert last_number("She has 3.\n#### 1,234") == 1234
    assert last_number("so 2 + 2 = 4.") == 4
    assert last_number("it is -0.5 or $-3") == -3
    assert last_number("none") is None


def test_exact_match_counts_right_numbers(tmp_path, monkeypatch):
    path = tmp_path / "q.jsonl"
    Dataset.from_dict({"question": ["a", "b"], "answer": ["x #### 4", "#### 5"]}).to_json(path)
    questions = load_questions(str(path))
    answers = ["It is 4.0", "It is 6"]
    monkeypatch.setattr("larf_curate.evaluation.task_metrics.generate_answers", lambda *a, **k: answers)
    assert exact_match(None, None, questions).values == (1.0, 0.0)
    tiny_rows().to_csv(tmp_path / "q.csv")
    with pytest.raises(InputError, match="no column question, answer"):
        load_questions(str(tmp_path / "q.csv"))


def test_the_held_out_loss_equals_the_row_by_row_loss():
    model, rows = byte_model(dtype=torch.float64), tiny_rows()
    measure = held_out_loss(model, TOKENIZER, rows, batch_size=3)
    want = []
    for row in rows:
        before = f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n"
        ids = [TOKENIZER(t, add_special_tokens=False)["input_ids"] for t in (before, row["output"] + "<|im_end|>\n")]
        logs = model(torch.tensor([ids[0] + ids[1]])).logits[0].log_softmax(-1)
        want.append(-sum(logs[len(ids[0]) + i - 1, t] for i, t in enumerate(ids[1])).item() / len(ids[1]))
    assert measure.values == pytest.approx(want, rel=1e-5)
    assert measure.to_dict()["interval"][0] <= measure.mean <= measure.to_dict()["interval"][1]
