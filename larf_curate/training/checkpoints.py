"""Which checkpoint of a training can be gone on from."""

import logging
from pathlib import Path
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from larf_curate.errors import InputError
from larf_curate.files import read_json

logger = logging.getLogger(__name__)


def last_whole(folder: Path) -> str | None:
    """The newest checkpoint of a training that was written to its end; newer ones are named in a warning.

    Args:
        folder: Output folder of the training.
    """
    steps = {
        int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()
    }
    for step in sorted(steps, reverse=True):
        if is_whole(steps[step]):
            return str(steps[step])
        logger.warning("%s is not whole: the training was stopped while it was written", steps[step])
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's state, weights and optimizer can be read; the state is what is written last."""
    try:
        read_json(checkpoint / "trainer_state.json")
        named = {checkpoint / name for index in checkpoint.glob("*.index.json") for name in _shards(index)}
        weights = sorted({*checkpoint.glob("*.safetensors"), *named})
        for path in weights:
            with safe_open(path, framework="numpy"):
                pass
    except (InputError, OSError, SafetensorError):
        return False
    states = sorted(checkpoint.glob("*.pt")) + sorted(checkpoint.glob("*.pth"))
    return bool(weights) and (checkpoint / "optimizer.pt") in states and all(map(is_zipfile, states))


def _shards(index: Path) -> set[str]:
    """Names of the files that hold a large model's weights."""
    return set(read_json(index)["weight_map"].values())
