import json

import pytest
from click.testing import CliRunner

from larf_curate.cli.evaluate import evaluate
from larf_curate.cli.train import train
from larf_curate.cli.training_options import make_recipe
from larf_curate.cli.verify import verify
from larf_curate.errors import InputError
from tests.fixtures.scored_folder import write_scored
from tests.fixtures.training_rows import scored_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_commands_train_and_evaluate_and_compare(start, tmp_path):
    scored_rows(8).to_json(tmp_path / "rows.jsonl")
    (tmp_path / "harmful.json").write_text('["Hurt him", "Steal it"]')
    quick = ["--epochs", 1, "--batch-size", 4, "--micro-batch-size", 4, "--max-length", 128]
    output = invoke(train, tmp_path / "rows.jsonl", "--model", start, "-o", tmp_path / "tuned", *quick, "--json")
    trained = json.loads(output)
    assert trained["steps"] == 2
    assert trained["sap/cost"] > 1
    asked = ["--harmful", tmp_path / "harmful.json", "--limit", 3, "--max-new-tokens", 4]
    invoke(evaluate, start, "-o", tmp_path / "before", *asked)
    output = invoke(
        evaluate, tmp_path / "tuned", "-o", tmp_path / "after", "--against", tmp_path / "before", *asked,
        "--held-out", tmp_path / "rows.jsonl", "--json",
    )  # fmt: skip
    after = json.loads(output)
    assert after["harmful"]["rows"] == 2
    assert after["safe"]["rows"] == after["held_out_loss"]["rows"] == 3
    assert after["against"]["harmful"]["p_value"] == 1.0
    assert (tmp_path / "after/refusals.png").exists()


def test_the_verify_command_writes_a_table_and_a_plot(start, tmp_path):
    write_scored(tmp_path / "scored", scored_rows())
    (tmp_path / "harmful.json").write_text('["Hurt him", "Steal it"]')
    output = invoke(
        verify, tmp_path / "scored", "--model", start, "-o", tmp_path / "runs", "--arm", "top:refusal", "--arm", "all",
        "--seeds", 1, "--rows", 8, "--epochs", 1, "--batch-size", 4, "--micro-batch-size", 4, "--max-length", 128,
        "--harmful", tmp_path / "harmful.json", "--limit", 2, "--max-new-tokens", 4,
    )  # fmt: skip
    assert "top:refusal" in output
    table = json.loads((tmp_path / "runs/table.json").read_text())
    assert [row["rows"] for row in table] == [None, 8, 24]
    assert (tmp_path / "runs/refusals.png").exists()


def test_an_evaluation_on_other_prompts_is_found_before_the_model_answers(start, tmp_path):
    (tmp_path / "one.json").write_text('["Hurt him"]')
    (tmp_path / "two.json").write_text('["Steal it"]')
    asked = ["--safe", tmp_path / "one.json", "--max-new-tokens", 2]
    invoke(evaluate, start, "-o", tmp_path / "before", "--harmful", tmp_path / "one.json", *asked)
    options = json.loads((tmp_path / "before/evaluation.json").read_text())["options"]
    assert (options["judge"], options["max_new_tokens"]) == ("phrases", 2)
    command = [tmp_path / "none", "-o", tmp_path / "after", "--harmful", tmp_path / "two.json", *asked]
    with pytest.raises(InputError, match="evaluated on other harmful prompts"):
        invoke(evaluate, *command, "--against", tmp_path / "before")
    judges = ["--guard", "a", "--classifier", "b"]
    result = CliRunner().invoke(evaluate, [str(part) for part in [*command, *judges]])
    assert "two judges: use one" in result.stderr
    assert not (tmp_path / "after").exists()


def test_a_batch_smaller_than_the_usual_micro_batch_needs_no_second_option():
    recipe = make_recipe("sft", {"lora_targets": "q_proj, v_proj", "batch_size": 8, "micro_batch_size": None})
    assert recipe.micro_batch_size == 8
    assert recipe.lora_targets == ("q_proj", "v_proj")
