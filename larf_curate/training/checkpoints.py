"""Find the last checkpoint of a training run that was completely written."""

import logging
from pathlib import Path
from typing import Annotated
from zipfile import is_zipfile

from pydantic import Field
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from larf_curate.errors import InputError
from larf_curate.records import FOREIGN, read_record

logger = logging.getLogger(__name__)
REMEDY = "resume from the checkpoint before"


class TrainerState(TypedDict):
    """``trainer_state.json``, which transformers writes last: the number of steps so far."""

    __pydantic_config__ = FOREIGN  # type: ignore[misc]

    global_step: int


class WeightIndex(TypedDict):
    """``*.index.json`` of a large model, which transformers writes: the file of each weight."""

    __pydantic_config__ = FOREIGN  # type: ignore[misc]

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


def last_complete(folder: Path) -> str | None:
    """Path of the last complete checkpoint of a training run, or None; incomplete newer ones are logged as warnings.

    Args:
        folder: Output folder of the run.
    """
    numbered = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*")}
    steps = {int(number): path for number, path in numbered.items() if number.isdigit()}
    for step in sorted(steps, reverse=True):
        if is_complete(steps[step], step):
            return str(steps[step])
        logger.warning("%s is incomplete: training was stopped while it was being written", steps[step])
    return None


def steps_of(checkpoint: str | Path) -> int:
    """Number of optimizer steps of a complete checkpoint.

    Args:
        checkpoint: Folder of the checkpoint.
    """
    return read_record(Path(checkpoint) / "trainer_state.json", TrainerState, remedy=REMEDY)["global_step"]


def is_complete(checkpoint: Path, step: int) -> bool:
    """Whether a checkpoint's weights, optimizer state and trainer state are readable.

    Args:
        checkpoint: Folder of the checkpoint.
        step: Number of steps that the trainer state, which is written last, must have.
    """
    try:
        if steps_of(checkpoint) != step:
            return False
        # A missing shard of a large model would not be noticed by looking only at the files that exist.
        listed = {
            name: file for index in checkpoint.glob("*.index.json") for name, file in _weight_files(index).items()
        }
        weights = sorted({*(path.name for path in checkpoint.glob("*.safetensors")), *listed.values()})
        stored = {name: file for file in weights for name in _weight_names(checkpoint / file)}
        if listed and listed != stored:
            return False
    except (InputError, OSError, SafetensorError):
        return False
    states = sorted(checkpoint.glob("*.pt")) + sorted(checkpoint.glob("*.pth"))
    return bool(weights) and (checkpoint / "optimizer.pt") in states and all(map(is_zipfile, states))


def _weight_files(index: Path) -> dict[str, str]:
    """The file of each weight, from the index of a large model."""
    return read_record(index, WeightIndex, remedy=REMEDY)["weight_map"]


def _weight_names(path: Path) -> list[str]:
    """Names of the weights in a file."""
    with safe_open(path, framework="numpy") as file:  # reads the header and compares it with the size of the file
        return list(file.keys())
