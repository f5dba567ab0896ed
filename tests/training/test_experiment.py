import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset

from larf_curate.cli.training import _recipe, evaluate, train, verify
from larf_curate.conversation.training_rows import training_rows
from larf_curate.data.prompts import load_table
from larf_curate.errors import ConversationError, InputError, ModelError
from larf_curate.evaluation.suite import EvaluationSuite
from larf_curate.files import read_json, write_json
from larf_curate.training import experiment as verify_module
from larf_curate.training import findings
from larf_curate.training.arms import Arm, choose, signal_values
from larf_curate.training.finetune import Recipe, fine_tune
from tests.fixtures.scored_folder import write_scored
from tests.fixtures.tiny import byte_model, byte_tokenizer, save
from tests.fixtures.training_rows import TRIPLES, scored_rows

# peft 0.21 reads a name that transformers 5.23 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(10, 200, size=400)
SCORES = RNG.normal(size=400) + TOKENS / 50  # long rows score higher
QUICK = Recipe(epochs=1, batch_size=4, micro_batch_size=4, learning_rate=1e-2, max_length=128)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model on disk."""
    return str(save(byte_model(), byte_tokenizer(), tmp_path_factory.mktemp("start")))


# --- subsets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 60, 150])
def test_arms_have_equal_rows_and_equal_tokens_though_the_score_follows_length(count):
    chosen = {kind: choose(Arm(kind), SCORES, TOKENS, count=count) for kind in ("top", "bottom", "random")}
    totals = {kind: TOKENS[rows].sum() for kind, rows in chosen.items()}
    assert {len(set(rows)) for rows in chosen.values()} == {count}
    assert max(totals.values()) / min(totals.values()) < 1.05
    assert SCORES[chosen["top"]].mean() > SCORES[chosen["random"]].mean() + 0.5
    assert SCORES[chosen["bottom"]].mean() < SCORES[chosen["random"]].mean() - 0.5


@pytest.mark.parametrize("count", [50, 90, 150])
def test_tokens_are_equal_too_where_few_rows_are_very_long_and_score_highest(count):
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(4, 1, 2000).astype(int) + 1
    scores = lengths / lengths.std() + rng.normal(size=2000)
    chosen = {kind: choose(Arm(kind), scores, lengths, count=count) for kind in ("top", "bottom", "random")}
    totals = {kind: lengths[rows].sum() for kind, rows in chosen.items()}
    assert {len(set(rows)) for rows in chosen.values()} == {count}
    assert max(totals.values()) / min(totals.values()) < 1.1
    assert scores[chosen["top"]].mean() > scores[chosen["random"]].mean() + 1
    assert scores[chosen["bottom"]].mean() < scores[chosen["random"]].mean() - 1


def test_the_top_of_rows_of_one_length_is_the_plain_top():
    scores = RNG.normal(size=50)
    rows = choose(Arm("top"), scores, [10] * 50, count=3)
    assert rows.tolist() == sorted(np.argsort(-scores)[:3])


def test_the_longest_rows_are_the_baseline():
    rows = choose(Arm("longest"), SCORES, TOKENS, count=10)
    assert TOKENS[rows].min() >= np.sort(TOKENS)[-10]


def test_kept_leaves_out_the_top_share_and_rows_without_score_first():
    scores = np.array([0.1, np.nan, 0.9, 0.5, 0.7, 0.2, 0.3, 0.4, 0.6, 0.8])
    tokens = [5] * 10
    assert choose(Arm("kept"), scores, tokens, count=0, removed=0.3).tolist() == [0, 3, 4, 5, 6, 7, 8]
    assert choose(Arm("all"), scores, tokens, count=0).tolist() == list(range(10))
    thinned = [choose(Arm("thinned"), scores, tokens, count=0, removed=0.3, seed=s).tolist() for s in (0, 0, 1)]
    assert thinned[0] == thinned[1] != thinned[2]
    assert len(thinned[0]) == 7


def test_rows_without_answer_or_score_are_not_picked():
    scores = np.array([9.0, np.nan, 1.0, 2.0])
    assert choose(Arm("top"), scores, [0, 5, 5, 5], count=2).tolist() == [2, 3]
    with pytest.raises(InputError, match="wanted 3 rows, got 2"):
        choose(Arm("top"), scores, [0, 5, 5, 5], count=3)


def test_random_rows_differ_by_seed_and_repeat_with_it():
    draws = [choose(Arm("random"), SCORES, TOKENS, count=40, seed=s).tolist() for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_signals_are_read_from_their_column_or_the_struct():
    rows = scored_rows()
    assert np.isnan(signal_values(rows, "larf_score")[0])
    assert signal_values(rows, "refusal").tolist() == [row["refusal"] for row in rows["larf_signals"]]
    with pytest.raises(InputError, match="no signal 'knn': wanted one of larf_score, refusal"):
        signal_values(rows, "knn")
    with pytest.raises(InputError, match="there is no arm 'best'"):
        Arm.parse("best")
    assert [Arm.parse(text).name for text in ("top", "bottom:refusal", "random")] == [
        "top:larf_score",
        "bottom:refusal",
        "random",
    ]


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "sap"])
def test_the_same_recipe_and_seed_give_the_same_weights(start, tmp_path, method):
    recipe = Recipe(**{**QUICK.to_dict(), "method": method, "probe_blocks": "1"})
    runs = [
        fine_tune(start, scored_rows(8), tmp_path / str(i), recipe=recipe, seed=seed, references=TRIPLES)
        for i, seed in enumerate((1, 1, 2))
    ]
    weights = [{k: v for k, v in run.model.state_dict().items() if "lora" in k} for run in runs]
    assert weights[0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert (tmp_path / "0/adapter_model.safetensors").exists()


def test_micro_batches_do_what_one_batch_does(start, tmp_path):
    runs = [
        fine_tune(
            start,
            scored_rows(8),
            tmp_path / str(size),
            recipe=Recipe(**{**QUICK.to_dict(), "method": "sap", "micro_batch_size": size}),
            references=TRIPLES,
        )
        for size in (4, 2)
    ]
    assert runs[0].state.global_step == runs[1].state.global_step == 2
    for (name, one), other in zip(runs[0].model.state_dict().items(), runs[1].model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_a_recipe_that_cannot_be_is_refused(start, tmp_path):
    with pytest.raises(InputError, match="sft or sap"):
        Recipe(method="dpo")
    with pytest.raises(InputError, match="divides"):
        Recipe(batch_size=16, micro_batch_size=5)
    with pytest.raises(ModelError, match="no layer that the LoRA names"):
        fine_tune(start, scored_rows(8), tmp_path, recipe=Recipe(lora_targets=("c_attn",)))
    with pytest.raises(ModelError, match="cannot load .* from the Hub id"):
        fine_tune(str(tmp_path / "none"), scored_rows(8), tmp_path, recipe=QUICK)


# --- the experiment ---------------------------------------------------------------------------------------------------


def experiment(start, folder, **changes):
    options = {
        "model": start,
        "scored": scored_rows(),
        "folder": folder,
        "checks": EvaluationSuite(
            harmful=("Hurt him", "Steal it", "Lie"), safe=("Hi",), held_out=scored_rows(4), max_new_tokens=4
        ),
        "arms": (Arm("top"), Arm("random")),
        "recipes": (QUICK,),
        "seeds": (0, 1),
        "rows": 8,
    }
    return verify_module.Experiment(**{**options, **changes})


def test_an_interrupted_experiment_goes_on_and_gives_the_same_table(start, tmp_path, monkeypatch):
    whole = experiment(start, tmp_path / "whole").run().table()
    calls = []
    train_once = verify_module.fine_tune

    def interrupted(*args, **options):
        calls.append(options["seed"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_once(*args, **options)

    monkeypatch.setattr(verify_module, "fine_tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment(start, tmp_path / "parts").run()
    resumed = experiment(start, tmp_path / "parts").run()
    assert calls == [0, 1, 0, 0, 1]

    def figures(rows):
        return [{key: value for key, value in row.items() if key != "seconds_per_step"} for row in rows]

    assert figures(resumed.table()) == figures(whole)
    assert [row["arm"] for row in whole] == ["base", "top:larf_score+sft", "random+sft"]
    assert whole[1]["rows"] == whole[2]["rows"] == 8
    assert whole[1]["tokens_per_row"] == pytest.approx(whole[2]["tokens_per_row"], rel=0.35)
    assert whole[1]["held_out_loss"] != whole[0]["held_out_loss"]
    resumed.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_of_another_experiment_is_refused(start, tmp_path):
    experiment(start, tmp_path)._claim()
    experiment(start, tmp_path, seeds=(5,))._claim()
    with pytest.raises(InputError, match="another scored"):
        experiment(start, tmp_path, scored=scored_rows(23))._claim()
    with pytest.raises(InputError, match="another prompts"):
        experiment(start, tmp_path, checks=EvaluationSuite(harmful=("Kill it",), max_new_tokens=4))._claim()
    with pytest.raises(InputError, match="another rows"):
        experiment(start, tmp_path, rows=9)._claim()
    with pytest.raises(InputError, match="another the sft recipe"):
        experiment(start, tmp_path, recipes=(Recipe(),))._claim()
    known = read_json(tmp_path / "verify.json")
    write_json(tmp_path / "verify.json", known | {"weights": "those of yesterday"})
    with pytest.raises(InputError, match="another weights"):
        experiment(start, tmp_path)._claim()
    with pytest.raises(InputError, match="one recipe a method"):
        experiment(start, tmp_path, recipes=(QUICK, Recipe()))
    with pytest.raises(InputError, match="every arm once"):
        experiment(start, tmp_path, arms=(Arm("random"), Arm("random", "refusal")))
    with pytest.raises(InputError, match="share from 0 to under 1"):
        experiment(start, tmp_path, removed=float("nan"))


def test_a_folder_of_other_rows_with_the_same_scores_is_refused(start, tmp_path):
    experiment(start, tmp_path)._claim()
    rows = scored_rows()
    others = rows.map(lambda row: {"output": "zzz"})
    signals = rows.map(lambda row: {"larf_signals": {"refusal": 0.5}})
    for changed in (others, signals):
        with pytest.raises(InputError, match="another scored"):
            experiment(start, tmp_path, scored=changed)._claim()
    with pytest.raises(InputError, match="another references"):
        experiment(start, tmp_path, references="mine.jsonl")._claim()
    checks = EvaluationSuite(
        harmful=("Hurt him", "Steal it", "Lie"), safe=("Hi",), held_out=scored_rows(5), max_new_tokens=4
    )
    with pytest.raises(InputError, match="another held_out"):
        experiment(start, tmp_path, checks=checks)._claim()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": (Arm("random"), Arm("top", "typo"))}, "no signal 'typo': wanted one of larf_score, refusal"),
        ({"arms": (Arm("top", "instruction"),)}, "'instruction' holds no numbers"),
        ({"rows": 99}, "wanted 99 rows, got 23"),
    ],
)
def test_what_cannot_be_chosen_is_said_before_any_work(start, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(verify_module, "load_model", lambda *_: pytest.fail("loaded the model"))
    with pytest.raises(InputError, match=message):
        experiment(start, tmp_path, **changes).run()


@pytest.mark.parametrize(
    ("damage", "content"), [("result.json", '{"half": '), ("result.json", "{}"), ("harmful.json", "[]")]
)
def test_a_run_whose_results_are_damaged_is_done_again(start, tmp_path, damage, content):
    runs = experiment(start, tmp_path, arms=(Arm("top"),), seeds=(0,))
    whole = runs.run().table()
    for folder in (tmp_path / "base", tmp_path / "top-larf_score+sft/seed-0"):
        (folder / damage).write_text(content)
    again = runs.run().table()
    assert [row["refused"] for row in again] == [row["refused"] for row in whole]


def test_all_rows_need_no_score_and_a_first_row_without_signals_does_not_hide_them(start, tmp_path):
    rows = scored_rows()
    signals = [None, *rows["larf_signals"][1:]]
    rows = rows.remove_columns("larf_signals").add_column("larf_signals", signals)
    assert np.isnan(signal_values(rows, "refusal")[0])
    assert not np.isnan(signal_values(rows, "refusal")[1:]).any()
    bare = experiment(start, tmp_path, scored=rows.remove_columns(["larf_score"]), arms=(Arm("all"), Arm("thinned")))
    assert {len(rows) for rows in bare._picks([5] * 24).values()} == {24, 22}


def test_an_arm_that_loses_nothing_or_all_still_has_an_interval():
    finding = findings.Finding(name="x", results=({},), refused=np.ones((3, 20)))
    assert finding.interval == pytest.approx((0.025 ** (1 / 20), 1.0))


def test_a_name_of_an_arm_is_no_path_and_no_formula(tmp_path):
    assert findings.run_folder(tmp_path, "top:a/../../b+sft", 1).parent.parent == tmp_path
    base = findings.Finding(name="base", results=({"harmful": {"mean": 1.0}},), refused=np.ones((1, 3)))
    odd = findings.Finding(name=r"top:$\foo{$", results=base.results, refused=base.refused)
    findings.Findings(base=base, arms=(odd,)).plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_losses_are_measured_against_the_start_and_against_random():
    def finding(name, rates):
        refused = np.array([[1.0] * round(10 * r) + [0.0] * (10 - round(10 * r)) for r in rates])
        results = tuple({"harmful": {"mean": r}, "rows": 4, "tokens": 40} for r in rates)
        return findings.Finding(name=name, results=results, refused=refused)

    found = findings.Findings(
        base=finding("base", [0.9]), arms=(finding("top:larf_score+sft", [0.3, 0.5]), finding("random+sft", [0.7, 0.7]))
    )
    base, top, random = found.table()
    assert (base["lost"], top["lost"], random["lost"]) == pytest.approx((0, 0.5, 0.2))
    assert top["lost_against_random"] == pytest.approx(2.5)
    assert top["interval"][0] < 0.3 < 0.5 < top["interval"][1]
    assert top["over_refusal"] is None


# --- commands ---------------------------------------------------------------------------------------------------------


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


def test_kept_rows_of_a_selection_are_what_is_trained_on(tmp_path):
    for part, count in (("kept", 3), ("flagged", 2)):
        (tmp_path / part).mkdir()
        scored_rows(count).to_parquet(tmp_path / part / "part-00000.parquet")
    assert len(load_table(tmp_path)) == 3


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
    assert "two judges: take one" in result.stderr
    assert not (tmp_path / "after").exists()


def test_a_batch_smaller_than_the_usual_micro_batch_needs_no_second_option():
    recipe = _recipe("sft", {"lora_targets": "q_proj, v_proj", "batch_size": 8, "micro_batch_size": None})
    assert recipe.micro_batch_size == 8
    assert recipe.lora_targets == ("q_proj", "v_proj")


def test_rows_that_are_left_out_and_columns_that_are_not_there_are_said(caplog):
    table = Dataset.from_list([{"question": "a", "answer": text} for text in ("fine", "", None, "x" * 99)])
    assert len(training_rows(table, byte_tokenizer(), max_length=64)) == 2
    assert "2 of 4 rows are left out (first: " in caplog.text
    with pytest.raises(ConversationError, match="nope"):
        training_rows(table, byte_tokenizer(), columns={"user": "nope", "assistant": "answer"})
    with pytest.raises(InputError, match=r"none of 1 rows has an assistant answer .*first: "):
        training_rows(table.select([1]), byte_tokenizer())
