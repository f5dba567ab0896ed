import numpy as np
import pytest
from datasets import Dataset

from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError
from larf_curate.evaluation.suite import EvaluationSuite
from larf_curate.files import read_json
from larf_curate.records import write_sealed
from larf_curate.training import experiment as verify_module
from larf_curate.training.arms import Arm, signal_values
from larf_curate.training.contrastive import paired_sides
from larf_curate.training.recipe import Recipe
from tests.fixtures.training_rows import TRIPLES, scored_rows

# peft 0.21 reads a name that transformers 5.23 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUICK = Recipe(epochs=1, batch_size=4, micro_batch_size=4, learning_rate=1e-2, max_length=128)


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


@pytest.mark.slow
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
    experiment(start, tmp_path)._check_identity()
    experiment(start, tmp_path, seeds=(5,))._check_identity()
    with pytest.raises(InputError, match="another scored"):
        experiment(start, tmp_path, scored=scored_rows(23))._check_identity()
    with pytest.raises(InputError, match="another prompts"):
        experiment(start, tmp_path, checks=EvaluationSuite(harmful=("Kill it",), max_new_tokens=4))._check_identity()
    with pytest.raises(InputError, match="another rows"):
        experiment(start, tmp_path, rows=9)._check_identity()
    with pytest.raises(InputError, match="another sft recipe"):
        experiment(start, tmp_path, recipes=(Recipe(),))._check_identity()
    known = read_json(tmp_path / "verify.json")
    write_sealed(tmp_path / "verify.json", known | {"weights": "those of yesterday"})
    with pytest.raises(InputError, match="another weights"):
        experiment(start, tmp_path)._check_identity()
    with pytest.raises(InputError, match="one recipe per method"):
        experiment(start, tmp_path, recipes=(QUICK, Recipe()))
    with pytest.raises(InputError, match="each arm only once"):
        experiment(start, tmp_path, arms=(Arm("random"), Arm("random", "refusal")))
    with pytest.raises(InputError, match="share from 0 to below 1"):
        experiment(start, tmp_path, removed=float("nan"))


def test_a_folder_with_other_files_is_refused(start, tmp_path):
    (tmp_path / "table.json").write_text("mine")
    with pytest.raises(InputError, match="is not empty, and holds no runs of verify: use a new folder"):
        experiment(start, tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_a_folder_of_other_rows_with_the_same_scores_is_refused(start, tmp_path):
    experiment(start, tmp_path)._check_identity()
    rows = scored_rows()
    others = rows.map(lambda row: {"output": "zzz"})
    signals = rows.map(lambda row: {"larf_signals": {"refusal": 0.5}})
    for changed in (others, signals):
        with pytest.raises(InputError, match="another scored"):
            experiment(start, tmp_path, scored=changed)._check_identity()
    mine, folder = tmp_path / "mine.csv", tmp_path / "with_mine"
    mine.write_text("prompt,unsafe,safe\nHow?,Like this.,No.\n")
    experiment(start, folder, references=str(mine))._check_identity()
    experiment(start, folder, references=str(mine))._check_identity()
    mine.write_text("prompt,unsafe,safe\nHow?,Like this.,Never.\n")
    for path in (folder, tmp_path):
        with pytest.raises(InputError, match="another references"):
            experiment(start, path, references=str(mine))._check_identity()
    checks = EvaluationSuite(
        harmful=("Hurt him", "Steal it", "Lie"), safe=("Hi",), held_out=scored_rows(5), max_new_tokens=4
    )
    with pytest.raises(InputError, match="another held_out"):
        experiment(start, tmp_path, checks=checks)._check_identity()


def test_the_same_contrastive_rows_continue_an_experiment_however_they_are_given(start, tmp_path):
    names = ("prompt", "unsafe", "safe")
    rows = Dataset.from_list([dict(zip(names, triple, strict=True)) for triple in TRIPLES])
    path = tmp_path / "mine.csv"
    rows.to_csv(path)
    for references in (iter(TRIPLES), TRIPLES, rows, str(path), path, ReferenceSet.load(path)):
        runs = experiment(start, tmp_path / "runs", references=references)
        runs._check_identity()
        assert paired_sides(runs.references) == paired_sides(TRIPLES)  # still there for the training runs
    with pytest.raises(InputError, match="another references"):
        experiment(start, tmp_path / "runs", references=TRIPLES[1:])._check_identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": (Arm("random"), Arm("top", "typo"))}, "no signal 'typo': wanted one of larf_score, refusal"),
        ({"arms": (Arm("top", "instruction"),)}, "'instruction' is not numeric"),
        ({"rows": 99}, "wanted 99 rows, got 23"),
    ],
)
def test_what_cannot_be_chosen_is_said_before_any_work(start, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(verify_module, "load_model", lambda *_: pytest.fail("loaded the model"))
    with pytest.raises(InputError, match=message):
        experiment(start, tmp_path, **changes).run()


@pytest.mark.slow
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
    assert {len(rows) for rows in bare._choose_rows([5] * 24).values()} == {24, 22}
