"""Steps of SFT and SAP on the GPU against the CPU."""

import pytest

from larf_curate.training.finetune import fine_tune
from larf_curate.training.recipe import Recipe
from tests.fixtures.gpu import needs_gpu
from tests.fixtures.training_rows import TRIPLES, scored_rows

pytestmark = [*needs_gpu, pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")]


@pytest.mark.parametrize("method", ["sft", "sap"])
def test_losses_equal_those_of_the_cpu(start, tmp_path, monkeypatch, method):
    recipe = Recipe(
        method=method, epochs=1, batch_size=4, micro_batch_size=4, max_length=128, probe_blocks="1", refusals="given"
    )
    losses = []
    for use_cpu in ("true", "false"):
        monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu)
        trainer = fine_tune(start, scored_rows(8), tmp_path / use_cpu, recipe=recipe, references=TRIPLES)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.model.device.type == ("cpu" if use_cpu == "true" else "cuda")
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
