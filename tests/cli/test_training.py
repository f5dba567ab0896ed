import json

import pytest
from click.testing import CliRunner

from larf_curate.cli.evaluate import evaluate
from larf_curate.cli.train import train
from larf_curate.cli.training_options import make_recipe
from larf_curate.cli.verify import verify
from larf_curate.errors import InputError
from larf_curate.evaluation.refusal_report import RefusalReport
from larf_curate.training import finetune
from larf_curate.training.callbacks import FiniteGuard
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
    assert (trained["rows"], trained["steps"]) == (8, 2)
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
    assert after["against"]["harmful"]["models"] == [str(start), str(tmp_path / "tuned")]
    assert (tmp_path / "after/refusals.png").exists()


def test_the_verify_command_writes_a_table_and_a_plot(start, tmp_path):
    write_scored(tmp_path / "scored", scored_rows())
    (tmp_path / "harmful.json").write_text('["Hurt him", "Steal it"]')
    command = [
        tmp_path / "scored", "--model", start, "--arm", "top:refusal", "--arm", "all",
        "--seeds", 1, "--rows", 8, "--epochs", 1, "--batch-size", 4, "--micro-batch-size", 4, "--max-length", 128,
        "--harmful", tmp_path / "harmful.json", "--limit", 2, "--max-new-tokens", 4,
    ]  # fmt: skip
    output = invoke(verify, *command, "-o", tmp_path / "runs")
    assert "top:refusal" in output
    assert "points lost" in output
    table = json.loads((tmp_path / "runs/table.json").read_text())
    assert [row["rows"] for row in table] == [None, 8, 24]
    assert (tmp_path / "runs/refusals.png").exists()
    invoke(verify, *command, "-o", tmp_path / "short", "--until-decided")
    other = json.loads((tmp_path / "short/table.json").read_text())
    assert [row | {"seconds_per_step": 0} for row in other] == [row | {"seconds_per_step": 0} for row in table]
    reports = list((tmp_path / "short").rglob("harmful.json"))
    assert len(reports) == len(table)
    assert not any(RefusalReport.load(path).has_whole_answers for path in reports)


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
    same = [tmp_path / "none", "-o", tmp_path / "after", "--harmful", tmp_path / "one.json", *asked]
    with pytest.raises(InputError, match="harmful prompts of the earlier .* judged by phrases, wanted larf"):
        invoke(evaluate, *same, "--judge", "larf", "--against", tmp_path / "before")
    judges = ["--guard", "a", "--classifier", "b"]
    result = CliRunner().invoke(evaluate, [str(part) for part in [*command, *judges]])
    assert "two judges: use one" in result.stderr
    assert not (tmp_path / "after").exists()


@pytest.mark.parametrize("name", ["harmful", "safe"])
def test_prompts_are_not_overwritten_by_answers(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.json").write_text('["Hurt him"]')
    (tmp_path / "rows.json").write_text('["Steal it"]')
    others = ["--harmful", "rows.json", "--safe", "rows.json", "--max-new-tokens", 2]
    with pytest.raises(InputError, match=f"{name}.json is an input, and would be overwritten: write to another"):
        invoke(evaluate, "none", "-o", ".", *others, f"--{name}", f"./{name}.json")
    with pytest.raises(InputError, match=f"{name}.json is no report .*, and would be overwritten: write to another"):
        invoke(evaluate, "none", "-o", ".", *others)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"{name}.json": '["Hurt him"]',
        "rows.json": '["Steal it"]',
    }


@pytest.mark.parametrize("file", ["evaluation.json", "refusals.png"])
@pytest.mark.parametrize("content", ["mine", "[]", '{"kind": "evaluation"}'])
def test_files_that_no_evaluation_has_written_are_not_overwritten(tmp_path, file, content):
    (tmp_path / "rows.json").write_text('["Steal it"]')
    (tmp_path / file).write_text(content)
    prompts = ["--harmful", tmp_path / "rows.json", "--safe", tmp_path / "rows.json"]
    with pytest.raises(InputError, match=f"{file} is not of larf-curate evaluate, and would be overwritten"):
        invoke(evaluate, "none", "-o", tmp_path, *prompts)
    assert (tmp_path / file).read_text() == content


def test_an_evaluation_replaces_an_earlier_one_but_not_that_which_it_is_compared_with(start, tmp_path):
    (tmp_path / "one.json").write_text('["Hurt him"]')
    prompts = ["--harmful", tmp_path / "one.json", "--safe", tmp_path / "one.json", "--max-new-tokens", 2]
    invoke(evaluate, start, "-o", tmp_path / "out", *prompts)
    invoke(evaluate, start, "-o", tmp_path / "out", *prompts)
    with pytest.raises(InputError, match="answers of up to 2 tokens, wanted 3: use --max-new-tokens 2"):
        invoke(evaluate, "none", "-o", tmp_path / "other", *prompts[:-1], 3, "--against", tmp_path / "out")
    with pytest.raises(InputError, match="has the earlier evaluation to compare with: write to another folder"):
        invoke(evaluate, "none", "-o", tmp_path / "out", *prompts, "--against", tmp_path / "out")


@pytest.mark.parametrize("command", [train, verify])
def test_options_of_sap_are_refused_without_it(tmp_path, command):
    options = ["--model", "none", "-o", tmp_path / "out", "--method", "sft", "--safe-cosine", 0.2, "--references", "a"]
    result = CliRunner().invoke(command, [str(part) for part in [tmp_path, *options]])
    assert result.exit_code == 2
    assert "--safe-cosine, --references belong to SAP: add --method sap" in result.stderr


def test_verify_adds_a_turned_gradient_to_runs_of_sft(start, tmp_path):
    write_scored(tmp_path / "scored", scored_rows())
    (tmp_path / "harmful.json").write_text('["Hurt him", "Steal it"]')
    command = [
        tmp_path / "scored", "--model", start, "-o", tmp_path / "runs", "--arm", "all", "--seeds", 1, "--max-steps", 1,
        "--batch-size", 4, "--harmful", tmp_path / "harmful.json", "--limit", 1, "--max-new-tokens", 2,
    ]  # fmt: skip
    invoke(verify, *command)
    before = (tmp_path / "runs/all+sft/seed-0/result.json").read_bytes()
    turned = ["--method", "sft", "--method", "sap", "--beta", 0, "--safe-cosine", 0.2, "--refusals", "given"]
    invoke(verify, *command, *turned)
    assert (tmp_path / "runs/all+sft/seed-0/result.json").read_bytes() == before
    recipe = json.loads((tmp_path / "runs/verify.json").read_text())["recipes"]["sap"]
    assert (recipe["beta"], recipe["safe_cosine"]) == (0, 0.2)
    assert "cosine with that of SAP's safety loss is at least 0.2" in (
        (tmp_path / "runs/all+sap/seed-0/model/README.md").read_text()
    )
    with pytest.raises(InputError, match="another sap recipe"):
        invoke(verify, *command, *turned, "--safe-cosine", 0.3)


def test_the_size_of_micro_batches_is_left_to_the_run_unless_it_is_given():
    values = {"lora_targets": "q_proj, v_proj", "batch_size": 8, "micro_batch_size": None}
    recipe = make_recipe("sft", values)
    assert recipe.micro_batch_size == 0
    assert make_recipe("sft", {**values, "micro_batch_size": 4}).micro_batch_size == 4
    assert recipe.lora_targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("steps", "said"),
    [(1, "the last checkpoint is OUT/checkpoint-1. Continue with: larf-curate train rows.jsonl --resume"),
     (0, "nothing was saved, since there is no checkpoint yet: --save-steps 50 writes one")],
)  # fmt: skip
def test_an_interrupted_training_says_how_to_continue(start, tmp_path, monkeypatch, steps, said):
    class Interrupt(FiniteGuard):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                raise KeyboardInterrupt

    scored_rows(8).to_json(tmp_path / "rows.jsonl")
    monkeypatch.setattr(finetune, "FiniteGuard", Interrupt)
    monkeypatch.setattr("sys.argv", ["larf-curate", "train", "rows.jsonl"])
    options = ["--method", "sft", "--batch-size", 4, "--max-length", 128, "--save-steps", steps]
    command = [tmp_path / "rows.jsonl", "--model", start, "-o", tmp_path / "out", *options]
    result = CliRunner().invoke(train, [str(part) for part in command])
    assert result.exit_code == 130
    assert f"\nError: interrupted; {said.replace('OUT', str(tmp_path / 'out'))}" in result.stderr
