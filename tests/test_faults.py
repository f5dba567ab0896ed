"""Damaged folders and tampered records: each is refused in one line, and none is used.

``LARF_CURATE_FAULTS=full pytest tests/test_faults.py -s`` does the full count and prints it.
"""

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from larf_curate.cli.pushed import remember, remembered
from larf_curate.data import tables
from larf_curate.data.prompts import load_prompts
from larf_curate.demo.run import SETTINGS, read_settings
from larf_curate.errors import InputError, LarfCurateError
from larf_curate.evaluation.refusal_report import RefusalReport
from larf_curate.files import read_json, sha256, write_json
from larf_curate.layers.grid import GridStore
from larf_curate.layers.report import LayerReport
from larf_curate.manifests import PLAN, read_plan
from larf_curate.models.adapters import merge_adapter, refuse_adapter
from larf_curate.profile import SafetyProfile, cache_profile
from larf_curate.profile.cache import profile_of
from larf_curate.profile.storage import CONFIG_FILE, STATES_FILE
from larf_curate.publish.kept_rows import read_kept_rows
from larf_curate.publish.provenance import published_files
from larf_curate.records import read_sealed, seal, write_sealed
from larf_curate.review.decisions.outcome import Decisions
from larf_curate.scoring import exemplars
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.journal import JOURNAL, read_journal, record_shard
from larf_curate.scoring.selection import Selection
from larf_curate.training.checkpoints import is_complete
from larf_curate.training.experiment import IDENTITY, Identity
from larf_curate.training.findings import ANSWERS, RESULT, ExperimentResults, read_result
from larf_curate.training.finetune import TrainingRecord
from larf_curate.training.recipe import Recipe
from tests.fixtures.decisions_folder import scored_record, selection_record, write_decisions, write_selection
from tests.fixtures.review_rows import fake_profile
from tests.fixtures.scored_folder import write_scored
from tests.fixtures.tiny import byte_model

pytestmark = [
    pytest.mark.usefixtures("own_caches"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
FULL = os.environ.get("LARF_CURATE_FAULTS") == "full"
RECORDS, FOLDERS, TENSORS, ADAPTERS = (1700, 350, 1000, 200) if FULL else (40, 24, 40, 8)
"""Tampered records of each kind, damaged folders of each kind, damaged files of tensors, and tampered adapters."""
ROWS = [{"question": f"Q{i}", "larf_score": i / 8, "larf_status": "ok"} for i in range(40)]
QUEUE = SimpleNamespace(dataset_id="0b5c")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A record that is read back.

    Args:
        file: The file in the folder that ``write`` returns.
        write: Writes it, with what is beside it.
        load: Reads it from that folder.
        accepted: Whether a value that came of a tampered record is right, given also the value of the whole one, the
            tampered text and the whole record: for files of others, and where a damaged record counts as none.
    """

    file: str
    write: Callable[[Path], Path]
    load: Callable[[Path], Any]
    accepted: Callable[[Any, Any, str, Any], bool] = lambda *given: False


def scored(folder: Path) -> Path:
    return write_scored(folder, Dataset.from_list(ROWS), pieces=2, source={"dataset": "d"})


def write_plan(folder: Path) -> Path:
    write_sealed(folder / PLAN, {"source": {"dataset": "d"}, "scorer": {"layers": [1, 2], "top_k": None}, "rows": 8})
    return folder


def write_journal(folder: Path) -> Path:
    shard = {"file": "part-0.parquet", "rows": 4, "bytes": 9, "sha256": "ab" * 32}
    record_shard(write_plan(folder), shard, plan=sha256(folder / PLAN))
    [entry] = (folder / JOURNAL).iterdir()
    entry.rename(entry.with_name("entry.json"))
    return folder


def write_profile(folder: Path, seed: int = 0) -> Path:
    profile = fake_profile(np.random.default_rng(seed).normal(size=(12, 6)))
    replace(profile, choice={"by": f"user {seed}"}, canary={"question": "Q", "answer": "A"}).save_pretrained(folder)
    return folder


def write_index(folder: Path, seed: int = 0) -> Path:
    states = np.random.default_rng(seed).normal(size=(5, 6)).astype(np.float32)
    index = ExemplarIndex(
        states=states, ids=tuple("abcde"), labels=tuple("uvuvu"), layer=3 + seed, centre=states.mean(0)
    )
    index.save(folder)
    return folder


def write_layers(folder: Path) -> Path:
    numbers = {"scores": (0.1, 0.3), "low": (0.0, 0.2), "high": (0.2, 0.4), "neutral_loss": (None, 0.5)}
    blocks = {"layers": (1,), "ranking": (1, 0), "broken": ()}
    report = LayerReport(
        method="gradient", model="m", prompts=8, refused=3, scaled=("o_proj",), seconds=1.5, **numbers, **blocks
    )
    report.save(folder)
    return folder


def write_report(folder: Path) -> Path:
    answers = {"prompts": ("P0", "P1"), "answers": ("No.", "Yes."), "refused": (True, False)}
    RefusalReport(model="m", judge="phrases", off_topic=(False, False), **answers).save(folder / ANSWERS)
    return folder


def write_result(folder: Path) -> Path:
    run = folder / "top+sft" / "seed-0"
    answers = sha256(write_report(run) / ANSWERS)
    measure = {"mean": 0.5, "interval": [0.1, 0.9], "rows": 2}
    trained = {"rows": 8, "tokens": 90, "seconds_per_step": 0.25}
    head = {"run": "top+sft/seed-0", "experiment": "e" * 64, "answers": answers}
    write_sealed(run / RESULT, {**head, "harmful": measure, "held_out_loss": measure, **trained})
    return folder


def write_identity(folder: Path) -> Path:
    digests = {name: name * 4 for name in ("weights", "scored", "prompts")}
    names = {"kind": "verify", "version": 2, "model": "m", "references": "builtin", "judge": "phrases"}
    numbers = {"rows": 8, "removed": 0.1, "max_new_tokens": 64}
    rest = {"recipes": {"sft": Recipe().to_dict()}, "columns": {"prompt": "q"}, "held_out": None}
    write_sealed(folder / IDENTITY, {**names, **digests, **numbers, **rest})
    return folder


def write_training(folder: Path) -> Path:
    names = {"kind": "training", "model": "m", "weights": None, "rows": "ab" * 32}
    write_sealed(folder / "training.json", {**names, "recipe": Recipe().to_dict(), "seed": 3})
    return folder


def write_checkpoint(folder: Path) -> Path:
    byte_model().save_pretrained(folder, max_shard_size="20KB")
    write_json(folder / "trainer_state.json", {"global_step": 4, "log_history": [{"loss": 1.5}]})
    torch.save({}, folder / "optimizer.pt")
    return folder


def write_cells(folder: Path) -> Path:
    GridStore(folder / "cells.jsonl", "key").add(2, 0.7, [0.5, 1.0])
    return folder


def write_adapter(folder: Path) -> Path:
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4})
    return folder


def write_queue(folder: Path) -> Path:
    folder.mkdir()
    remember(QUEUE, folder / "selection")  # in the user's data folder, wherever the selection is
    return folder


def write_settings(folder: Path) -> Path:
    write_sealed(folder / SETTINGS, {"model": "m", "layers": [3, 5]})
    return folder


def write_provenance(folder: Path) -> Path:
    files = {"data/a.parquet": {"bytes": 3, "sha256": "ab" * 32}}
    record = {"kind": "publication", "version": 1, "counts": {"rows": 3}, "files": files, "stage": {"kind": "x"}}
    write_json(folder / "provenance.json", seal(record))
    return folder


def write_prompts(folder: Path) -> Path:
    write_json(folder / "prompts.json", ["How do I?", "Who did it?", "Why?"])
    return folder


def provenance(folder: Path) -> dict[str, str]:
    return dict(published_files((folder / "provenance.json").read_bytes()))


def is_none(value: Any, whole: Any, text: str, record: Any) -> bool:
    return value == {}


def is_none_or_whole(value: Any, whole: Any, text: str, record: Any) -> bool:
    return value in ({}, whole)


def is_what_was_written(value: Any, whole: Any, text: str, record: Any) -> bool:
    return value == json.loads(text.removeprefix("\ufeff"))  # which is allowed


def is_incomplete_or_whole(value: Any, whole: Any, text: str, record: Any) -> bool:
    """Whether a checkpoint is passed over, or what counts in its record is as it was."""
    names = ("global_step", "weight_map")
    return value is False or [json.loads(text).get(name) for name in names] == [record.get(name) for name in names]


KINDS = {
    "manifest": Kind(file="manifest.json", write=scored, load=Scored.load),
    "selection": Kind(file="selection.json", write=write_selection, load=Selection.load),
    "decisions": Kind(file="decisions.json", write=write_decisions, load=Decisions.load),
    "plan": Kind(file=PLAN, write=write_plan, load=read_plan),
    "journal": Kind(
        file=f"{JOURNAL}/entry.json",
        write=write_journal,
        load=read_journal,
        accepted=is_none,
    ),
    "profile": Kind(file=CONFIG_FILE, write=write_profile, load=SafetyProfile.from_pretrained),
    "index": Kind(file=exemplars.CONFIG_FILE, write=write_index, load=ExemplarIndex.load),
    "layers": Kind(file="layers.json", write=write_layers, load=LayerReport.load),
    "cells": Kind(
        file="cells.jsonl",
        write=write_cells,
        load=lambda folder: GridStore(folder / "cells.jsonl", "key").cells,
        accepted=is_none,
    ),
    "report": Kind(file=ANSWERS, write=write_report, load=lambda folder: RefusalReport.load(folder / ANSWERS)),
    "result": Kind(
        file=f"top+sft/seed-0/{RESULT}", write=write_result, load=lambda folder: read_result(folder / "top+sft/seed-0")
    ),
    "answers": Kind(
        file=f"top+sft/seed-0/{ANSWERS}", write=write_result, load=lambda folder: read_result(folder / "top+sft/seed-0")
    ),
    "experiment": Kind(
        file=IDENTITY, write=write_identity, load=lambda folder: read_sealed(folder / IDENTITY, Identity, remedy="x")
    ),
    "training": Kind(
        file="training.json",
        write=write_training,
        load=lambda folder: read_sealed(folder / "training.json", TrainingRecord, remedy="x"),
    ),
    "trainer state": Kind(
        file="trainer_state.json",
        write=write_checkpoint,
        load=lambda folder: is_complete(folder, 4),
        accepted=is_incomplete_or_whole,
    ),
    "weight index": Kind(
        file="model.safetensors.index.json",
        write=write_checkpoint,
        load=lambda folder: is_complete(folder, 4),
        accepted=is_incomplete_or_whole,
    ),
    "adapter": Kind(file="adapter_config.json", write=write_adapter, load=lambda folder: refuse_adapter(str(folder))),
    "queue": Kind(file="../home/queues/0b5c.json", write=write_queue, load=lambda folder: remembered(QUEUE)),
    "demo": Kind(file=SETTINGS, write=write_settings, load=read_settings),
    "provenance": Kind(file="provenance.json", write=write_provenance, load=provenance, accepted=is_none_or_whole),
    "prompts": Kind(
        file="prompts.json",
        write=write_prompts,
        load=lambda folder: load_prompts(folder / "prompts.json"),
        accepted=is_what_was_written,
    ),
}
VALUES = [None, True, 0, -1, 10**30, 1.5, "", "x", [], {}, [[]], {"a": 1}, float("nan"), float("inf"), "../../x"]


def places(value, path=()):
    """Paths of all values in a record."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def tampered(record: dict, rng: random.Random) -> str:
    """The text of a record with one fault, which may not give the same record again."""
    text, changed = json.dumps(record), copy.deepcopy(record)
    *parents, last = rng.choice(list(places(record))[1:])
    holder = changed
    for key in parents:
        holder = holder[key]
    fault = rng.randrange(5)
    if fault == 0:
        del holder[last]
    elif fault == 1:
        return text[: rng.randrange(len(text) - 1)]
    elif fault == 2:
        return rng.choice(["[" * 20_000, '{"a":' * 20_000, "null", "[]", "\ufeff" + text, "9" * 5000])
    elif fault == 3 and isinstance(holder, dict):
        holder[f"{last}x"] = holder[last]
    else:
        holder[last] = rng.choice(
            [value for value in VALUES if value != holder[last] or type(value) is not type(holder[last])]
        )
    return json.dumps(changed)


def refused(load: Callable[[], Any]) -> bool:
    """Whether loading is refused, in one short line; any other error is a failure of the test."""
    message = None
    try:
        load()
    except LarfCurateError as error:
        message = str(error)
    assert "\n" not in (message or "")
    assert len(message or "") < 500
    return message is not None


@pytest.mark.parametrize("name", KINDS)
def test_a_tampered_record_is_refused_in_one_line(tmp_path, name):
    kind = KINDS[name]
    folder, rng = kind.write(tmp_path / "x"), random.Random(0)
    path = folder / kind.file
    record = json.loads(path.read_text())
    whole = kind.load(folder) if name != "adapter" else None  # refused in any case: it is no model
    count = 0
    for _ in range(RECORDS):
        text = tampered(record, rng)
        path.write_text(text)
        found: list[Any] = []
        if refused(lambda into=found: into.append(kind.load(folder))):
            count += 1
        else:
            assert kind.accepted(found[0], whole, text, record), text
    print(f"{name}: {RECORDS} tampered, {count} refused, {RECORDS - count} not taken or read rightly, 0 tracebacks")  # noqa: T201


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(byte_model(), config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # PEFT's, of fields and modules that it does not know
def test_a_tampered_adapter_is_refused_in_one_line_or_merged(tmp_path, adapted):
    rng, count = random.Random(3), 0
    record = json.loads((adapted / "adapter_config.json").read_text())
    folder = Path(shutil.copytree(adapted, tmp_path / "adapter"))
    assert not refused(lambda: merge_adapter(byte_model(), str(folder), 3))
    for _ in range(ADAPTERS):
        (folder / "adapter_config.json").write_text(tampered(record, rng))
        count += refused(lambda: merge_adapter(byte_model(), str(folder), 3))
    print(f"adapter merged: {ADAPTERS} tampered, {count} refused, 0 tracebacks")  # noqa: T201


def damage_tensors(path: Path, other: Path, fault: int, rng: random.Random) -> None:
    """Damage a file of tensors; ``other`` is the same file of another profile or index."""
    data = bytearray(path.read_bytes())
    tensors, metadata = load_file(path), metadata_of(path)
    name = rng.choice(sorted(tensors))
    if fault == 0:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif fault == 1:
        path.write_bytes(data[: rng.randrange(len(data))])
    elif fault == 2:
        shutil.copy(other, path)
    elif fault == 3:  # a header that says another shape or type of the same bytes
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        header[name] |= rng.choice([{"shape": []}, {"shape": [1, header[name]["shape"][0]]}, {"dtype": "I32"},
                                    {"dtype": "BF16"}, {"shape": [-1]}, {"data_offsets": [0, 10**18]}])  # fmt: skip
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    else:
        values = tensors.pop(name)
        flat = values.copy().reshape(-1)
        flat[rng.randrange(flat.size)] = rng.choice([np.nan, np.inf, 7e8])
        changed = [flat.reshape(values.shape), values[:-1], values[..., :-1], values[None], values.astype(np.float64),
                   np.zeros((0, *values.shape[1:]), np.float32)]  # fmt: skip
        names = rng.choice([name, name, name, f"{name}.x", "x", "harmful.last"])
        tensors |= {names: rng.choice(changed)} if rng.random() < 0.9 else {}
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata=metadata)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


@pytest.mark.parametrize(
    ("name", "file"), [("profile", STATES_FILE), ("index", exemplars.STATES_FILE)], ids=["profile", "index"]
)
def test_damaged_tensors_are_refused_in_one_line(tmp_path, name, file):
    kind, rng = KINDS[name], random.Random(2)
    folder, other = (
        kind.write(tmp_path / "x"),
        {"profile": write_profile, "index": write_index}[name](tmp_path / "y", 1),
    )
    whole = (folder / file).read_bytes()
    for index in range(TENSORS):
        (folder / file).write_bytes(whole)
        assert not refused(lambda: kind.load(folder))
        damage_tensors(folder / file, other / file, index % 6, rng)
        assert refused(lambda: kind.load(folder)), index % 6
    print(f"{file}: {TENSORS} damaged files of tensors, {TENSORS} refused")  # noqa: T201


def damage(folder: Path, other: Path, manifest: str, fault: int, rng: random.Random) -> None:
    """Damage a shard of a folder, or its manifest; ``other`` is a folder of another run."""
    shards = sorted(folder.rglob("*.parquet"))
    shard, another = rng.sample(shards, 2)
    data = bytearray(shard.read_bytes())
    if fault == 0:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        times = shard.stat()
        shard.write_bytes(data)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk error leaves it
    elif fault == 1:
        shard.write_bytes(data[: rng.randrange(len(data))])
    elif fault == 2:
        shard.unlink()
    elif fault == 3:
        shutil.copy(other / shard.relative_to(folder), shard)
        if shard.read_bytes() == data:  # both runs have the same rows in this shard
            shard.unlink()
    elif fault == 4:
        shutil.copy(shard, shard.with_name("part-99999.parquet"))
    elif fault == 5:
        shutil.move(shard, folder.parent / "outside.parquet")
        shard.symlink_to(folder.parent / "outside.parquet")
    elif fault == 6:  # both are shards of this run
        shutil.copy(another, shard)
    elif fault == 7:
        shard.write_bytes(another.read_bytes())
        another.write_bytes(data)
    else:
        shutil.copy(other / manifest, folder / manifest)


FAULTS = 9
LOADERS = {
    "manifest": Scored.load,
    "selection": Selection.load,
    "decisions": Decisions.load,
    "selection to publish": read_kept_rows,
    "decisions to publish": read_kept_rows,
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, name, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 5)
    kind, load, rng = KINDS[name.removesuffix(" to publish")], LOADERS[name], random.Random(1)
    whole = kind.write(tmp_path / "whole")
    other = scored_elsewhere(tmp_path / "other") if kind.write is scored else kind.write(tmp_path / "other", rows=13)
    load(whole)
    for index in range(FOLDERS):
        folder = Path(shutil.copytree(whole, tmp_path / f"x{index}"))
        damage(folder, other, kind.file, index % FAULTS, rng)
        assert refused(lambda at=folder: load(at)), index % FAULTS
        shutil.rmtree(folder)
    print(f"{name}: {FOLDERS} damaged folders, {FOLDERS} refused, 0 used")  # noqa: T201


def scored_elsewhere(folder: Path) -> Path:
    return write_scored(folder, Dataset.from_list(ROWS[::-1]), pieces=2, source={"dataset": "e"})


OTHER_IDS = selection_record(12, 5, ids=selection_record(14, 5)["ids"])
OTHER_FLAGS = selection_record(12, 4)
OTHER_SCORES = selection_record(12, 5, scored=scored_record(12, scores="ab" * 32))


@pytest.mark.parametrize(
    ("write", "changes", "said"),
    [
        (write_decisions, {"selection": OTHER_IDS}, "decisions.json is of a selection that kept other rows"),
        (write_decisions, {"selection": OTHER_FLAGS}, "decisions.json is of a selection that kept other rows"),
        (write_decisions, {"selection": OTHER_SCORES}, "decisions.json is of rows that were scored otherwise"),
        (write_selection, {"ids": OTHER_IDS["ids"]}, "selection.json is of a selection that kept other rows"),
        (write_selection, {"scored": OTHER_SCORES["scored"]}, "selection.json is of rows that were scored otherwise"),
    ],
)
def test_a_sealed_record_of_another_run_is_not_published(tmp_path, write, changes, said):
    read_kept_rows(write(tmp_path / "whole"))
    with pytest.raises(InputError, match=said):
        read_kept_rows(write(tmp_path / "x", **changes))


def test_results_of_another_run_are_refused(tmp_path):
    run = write_result(tmp_path / "runs") / "top+sft" / "seed-0"
    read_result(run)
    moved = Path(shutil.copytree(run, run.with_name("seed-1")))
    with pytest.raises(InputError, match=r"seed-1/result.json is of the run 'top\+sft/seed-0'"):
        read_result(moved)


def test_results_of_another_experiment_are_refused(tmp_path):
    folder = write_result(tmp_path / "runs")
    base, record = folder / "base", read_json(folder / "top+sft" / "seed-0" / RESULT)
    write_report(base)
    write_sealed(base / RESULT, record | {"run": "base"})
    assert [arm.name for arm in ExperimentResults.read(folder, ["top+sft"], [0]).arms] == ["top+sft"]
    write_sealed(base / RESULT, record | {"run": "base", "experiment": "f" * 64})
    with pytest.raises(InputError, match=r"runs/top\+sft/seed-0 is of another experiment than base"):
        ExperimentResults.read(folder, ["top+sft"], [0])


def test_a_damaged_copy_in_the_cache_is_replaced_and_another_profile_under_its_name_is_not_used(tmp_path, own_caches):
    profile = SafetyProfile.from_pretrained(write_profile(tmp_path / "p"))
    index = ExemplarIndex.load(write_index(tmp_path / "i"))
    folders = [cache_profile(profile), exemplars.cache_exemplars(index)]
    for folder in folders:
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:-3])
    assert profile_of({"profile": {"digest": profile.digest}}) is None
    assert [cache_profile(profile), exemplars.cache_exemplars(index)] == folders
    assert SafetyProfile.from_pretrained(folders[0]).digest == profile.digest
    assert ExemplarIndex.load(folders[1]).digest == index.digest
    assert profile_of({"profile": {"digest": profile.digest}}).digest == profile.digest
    shutil.rmtree(folders[0])
    write_profile(folders[0], seed=1)
    assert profile_of({"profile": {"digest": profile.digest}}) is None
