import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from larf_curate.errors import InputError, TrainingError
from larf_curate.records import write_sealed
from larf_curate.training import finetune
from larf_curate.training.checkpoints import is_complete, last_complete
from larf_curate.training.finetune import fine_tune
from larf_curate.training.recipe import Recipe
from tests.fixtures.tiny import byte_model
from tests.fixtures.training_rows import TRIPLES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
RECIPE = {"epochs": 1, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2, "max_length": 128}
OTHERS = ("lora_rank", "optimizer", "max_steps")


def rows(count=12, first=0):
    return Dataset.from_list(
        [{"instruction": f"Say {i}", "output": f"It is {i * 7}."} for i in range(first, first + count)]
    )


def lora(trainer):
    found = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if "lora_B" in name}
    assert found
    return found


def train(start, folder, table=None, **options):
    recipe = Recipe(**RECIPE | {name: options.pop(name) for name in [*options] if name in RECIPE or name in OTHERS})
    return fine_tune(start, table or rows(), folder, recipe=recipe, save_steps=1, **{"references": TRIPLES} | options)


class Stop(TrainerCallback):
    """Interrupts training before its third step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.fixture
def stopped(start, tmp_path, monkeypatch):
    """A folder whose training was stopped after its second step of three."""
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "FiniteGuard", Stop)
        with pytest.raises(KeyboardInterrupt):
            train(start, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    return tmp_path / "run"


def test_a_stopped_training_goes_on_to_the_same_weights(start, tmp_path, stopped):
    whole, resumed = train(start, tmp_path / "whole"), train(start, stopped, resume=True)
    assert resumed.state.global_step == 3
    for name, value in lora(whole).items():
        assert torch.equal(value, lora(resumed)[name]), name


def test_a_run_of_an_earlier_version_goes_on_with_other_micro_batches(start, tmp_path, stopped):
    """Its record lacks the options that came later."""
    record = json.loads((stopped / "training.json").read_text())
    for name in ("optimizer", "gradient_checkpointing"):
        del record["recipe"][name]
    record["recipe"]["micro_batch_size"] = 4
    write_sealed(stopped / "training.json", record)
    resumed, whole = train(start, stopped, resume=True, micro_batch_size=2), train(start, tmp_path / "whole")
    assert resumed.state.global_step == 3
    for name, value in lora(whole).items():
        torch.testing.assert_close(value, lora(resumed)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("damage", "file"),
    [("half", "trainer_state.json"), ("gone", "trainer_state.json"), ("half", "adapter_model.safetensors"),
     ("gone", "adapter_model.safetensors"), ("half", "optimizer.pt"), ("gone", "optimizer.pt"),
     ("half", "scheduler.pt")],
)  # fmt: skip
def test_a_half_written_checkpoint_is_passed_over_for_the_one_before(start, tmp_path, stopped, caplog, damage, file):
    path = stopped / "checkpoint-2" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) if damage == "half" else path.unlink()
    assert is_complete(stopped / "checkpoint-1", 1)
    assert last_complete(stopped) == str(stopped / "checkpoint-1")
    assert "checkpoint-2 is incomplete" in caplog.text
    resumed = train(start, stopped, resume=True)
    assert resumed.state.global_step == 3
    whole = train(start, tmp_path / "whole")
    assert all(torch.equal(value, lora(resumed)[name]) for name, value in lora(whole).items())


@pytest.mark.parametrize(
    ("options", "what"),
    [({"table": rows(first=5)}, "rows"), ({"seed": 5}, "seed"), ({"learning_rate": 1e-9}, "learning_rate"),
     ({"lora_rank": 4}, "lora_rank"), ({"batch_size": 8}, "batch_size"), ({"optimizer": "sgd"}, "optimizer")],
)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(start, stopped, options, what):
    with pytest.raises(InputError, match=f"of a training run with another .*{what}"):
        train(start, stopped, resume=True, **options)


def test_a_checkpoint_with_other_contrastive_rows_is_refused(start, tmp_path):
    recipe = Recipe(method="sap", refusals="given", **RECIPE)
    options = {"recipe": recipe, "save_steps": 1}
    first = fine_tune(start, rows(), tmp_path / "run", references=iter(TRIPLES), **options)
    assert first.state.global_step == 3
    with pytest.raises(InputError, match="of a training run with another references: use a new folder"):
        fine_tune(start, rows(), tmp_path / "run", references=TRIPLES[1:], resume=True, **options)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    del record["references"]  # as an earlier version wrote it
    write_sealed(tmp_path / "run" / "training.json", record)
    assert fine_tune(start, rows(), tmp_path / "run", references=TRIPLES, resume=True, **options).state.global_step == 3


@pytest.mark.parametrize("damage", [None, "changed", "gone"])
def test_a_resumed_run_takes_its_own_refusals_from_its_folder(start, tmp_path, monkeypatch, caplog, damage):
    asked = []

    def own(sides, model, tokenizer):
        asked.append(len(sides[0]))
        safe = [
            {"prompt": row["prompt"], "response": f"No \ud800 {i}, <b>I</b> won't."} for i, row in enumerate(sides[1])
        ]
        return sides[0][1:], safe[1:]

    monkeypatch.setattr("larf_curate.training.sap.own_refusals", own)
    options = {"recipe": Recipe(method="sap", **RECIPE), "references": TRIPLES, "save_steps": 1}
    whole = fine_tune(start, rows(), tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr("larf_curate.training.sap.FiniteGuard", Stop)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(start, rows(), tmp_path / "run", **options)
    file = tmp_path / "run" / "refusals.json"
    if damage == "changed":
        file.write_text(file.read_text().replace("won't", "will"))
    elif damage:
        file.unlink()
    resumed = fine_tune(start, rows(), tmp_path / "run", resume=True, **options)
    assert resumed.state.global_step == 3
    assert len(asked) == (3 if damage else 2)
    assert ("generated again" in caplog.text) == (damage == "changed")
    for name, value in lora(whole).items():
        assert torch.equal(value, lora(resumed)[name]), name
    assert not file.exists(), "rows of the references beside a model that may be published"
    assert not (tmp_path / "whole" / "refusals.json").exists()


@pytest.mark.parametrize("references", [TRIPLES[1:], Path("gone.csv"), None])
def test_sft_ignores_contrastive_rows(start, stopped, references):
    assert train(start, stopped, resume=True, references=references).state.global_step == 3


def test_a_checkpoint_that_lacks_one_of_several_shards_is_not_whole(tmp_path):
    model = byte_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 4, "later": []}')
    torch.save({}, tmp_path / "optimizer.pt")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert is_complete(tmp_path, 4)
    assert not is_complete(tmp_path, 8), "a checkpoint under the name of a later one"
    shards[0].unlink()
    assert not is_complete(tmp_path, 4)


def test_a_checkpoint_of_a_training_from_other_weights_is_refused(start, tmp_path):
    moved = Path(shutil.copytree(start, tmp_path / "start"))
    train(str(moved), tmp_path / "run2", resume=True)
    other = byte_model()
    with torch.no_grad():
        list(other.parameters())[-1].mul_(1.01)
    other.save_pretrained(moved)
    with pytest.raises(InputError, match="of a training run with another weights"):
        train(str(moved), tmp_path / "run2", resume=True)


def test_checkpoints_of_a_training_that_is_not_recorded_are_refused(start, stopped):
    (stopped / "training.json").unlink()
    with pytest.raises(InputError, match="with other files: use a new folder"):
        train(start, stopped, resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["README.md", "data/x.parquet", ".hidden", "training.json"])
def test_a_folder_with_files_of_others_is_not_trained_into(start, tmp_path, name, resume):
    (tmp_path / "run/data").mkdir(parents=True)
    (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(InputError, match="got .*run with other files: use a new folder"):
        train(start, tmp_path / "run", resume=resume)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [(path.read_text(), path) for path in files] == [("{}", tmp_path / "run" / name)]


def test_a_new_training_does_not_mix_with_old_checkpoints(start, stopped):
    with pytest.raises(InputError, match="checkpoints of an earlier training run: continue it with --resume"):
        train(start, stopped)
    for path in stopped.glob("checkpoint-*"):
        shutil.rmtree(path)
    assert train(start, stopped).state.global_step == 3


def test_nothing_to_resume_is_said(start, tmp_path, caplog):
    train(start, tmp_path, resume=True)
    assert "there is no checkpoint" in caplog.text
    assert json.loads((tmp_path / "training.json").read_text())["seed"] == 0


def test_a_training_of_one_step_changes_the_weights(start, tmp_path):
    assert any(value.any() for value in lora(train(start, tmp_path, rows(4))).values())


def test_weights_that_a_step_breaks_are_found_before_they_are_saved(start, tmp_path):
    with pytest.raises(TrainingError, match=r"not finite after step 1; there is no checkpoint yet"):
        train(start, tmp_path, learning_rate=3e38)
    assert not list(Path(tmp_path).rglob("*.safetensors"))


@pytest.mark.parametrize("ends", [{"epochs": 2, "max_steps": 4}, {"epochs": 1.3}])
def test_a_finished_training_is_not_trained_on_when_it_is_resumed(start, tmp_path, caplog, ends):
    whole = train(start, tmp_path, **ends)
    again = train(start, tmp_path, resume=True, **ends)
    assert whole.state.global_step == again.state.global_step == 4  # in the middle of the second epoch
    assert "nothing is left to train" in caplog.text
    for name, value in lora(whole).items():
        assert torch.equal(value, lora(again)[name]), name


def test_a_limit_above_the_number_of_steps_changes_nothing(start, tmp_path):
    steps = [train(start, tmp_path / str(n), rows(5), epochs=2, max_steps=n).state.global_step for n in (0, 100)]
    assert steps == [4, 4]  # two in each epoch, the second with one row
