import subprocess
import sys
from pathlib import Path

import pytest
import torch

from larf_curate.training import SapConfig, SapTrainer, training_rows
from tests.fixtures.tiny import byte_model, byte_tokenizer
from tests.fixtures.training_rows import TRIPLES, tiny_rows

pytestmark = pytest.mark.slow
SCRIPT = """
import os, sys
import torch.distributed
from tests.training.test_ddp import train
train(sys.argv[1], int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]))
torch.distributed.barrier()  # a process that ends first can abort the other
torch.distributed.destroy_process_group()
"""


def train(folder, world, rank):
    """Two steps of SAP on 4 rows and 2 contrastive rows in all, however many processes share them."""
    torch.set_num_threads(1)
    tokenizer, model = byte_tokenizer(), byte_model(dtype=torch.float64)
    args = SapConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4 // world,
        contrastive_batch_size=2 // world,
        epsilon=1e-2,
        beta=0.1,
        probe_step="unit",
        safe_cosine=0.8,
        learning_rate=1e-2,
        optim="sgd",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        activation_checkpointing=False,
        ddp_find_unused_parameters=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = training_rows(tiny_rows(), tokenizer)
    trainer = SapTrainer(model, args, references=TRIPLES, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.accelerator.num_processes == world
    logged = [entry["sap/safety_loss"] for entry in trainer.state.log_history if "sap/safety_loss" in entry]
    torch.save({"weights": model.state_dict(), "probes": trainer._probes, "logged": logged}, f"{folder}/{rank}.pt")


def test_two_processes_do_the_step_of_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    train(tmp_path / "one", 1, 0)
    (tmp_path / "run.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "run.py"), str(tmp_path / "two")],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (torch.load(tmp_path / name) for name in ("one/0.pt", "two/0.pt", "two/1.pt"))
    for name, value in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(first["probes"], one["probes"], rtol=1e-4, atol=1e-6)
    assert first["logged"] == pytest.approx(one["logged"], rel=1e-6)
