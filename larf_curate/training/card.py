"""The model card of a fine-tuned model: what it was made of, how to load it, and what to measure before use."""

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from larf_curate.models.source import public_name
from larf_curate.version import __version__

SFT = "supervised fine-tuning (SFT)"
SAP = "Safety-Aware Probing (SAP, [arXiv 2505.16737](https://arxiv.org/abs/2505.16737))"
PROBED = "which turns updates away from the direction in which the weights would lose their refusals"
TURNED = (
    "with every gradient turned, if needed, until its cosine with that of SAP's safety loss is at least {safe_cosine}, "
    "which is not part of that paper"
)
LOADING = {
    "peft": """from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")""",
    "transformers": """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER")""",
}
"""Code that loads a model, by library."""
TEXT = """
# {name}, fine-tuned

{name} after {method}, by larf-curate {version}: {steps} on {rows} rows, of which the digest of the tokens is
`{digest}`.

```python
{loading}
```

Fine-tuning can cost refusals, even on harmless rows. Measure them before use, on prompts of your own:

```bash
larf-curate evaluate FOLDER -o evaluation/ --harmful harmful.csv --safe safe.csv
```

## Settings

```json
{settings}
```

The licence of {name} applies; this card does not state one.
"""


def model_card(record: Mapping[str, Any], *, rows: int, steps: int) -> ModelCard:
    """Describe a fine-tuned model, without the path of a local initial model.

    Args:
        record: The training run; see `larf_curate.training.finetune.TrainingRecord`.
        rows: Number of rows trained on.
        steps: Number of optimizer steps.
    """
    recipe, name = record["recipe"], public_name(record["model"])
    library = "peft" if recipe["lora_rank"] else "transformers"
    is_hub_id = name == record["model"]
    data = ModelCardData(
        base_model=name if is_hub_id else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["larf-curate", recipe["method"], *(["lora"] if recipe["lora_rank"] else [])],
    )
    text = TEXT.format(
        name=name,
        method=_method(recipe),
        version=__version__,
        steps=f"{steps:,} step{'' if steps == 1 else 's'}",
        rows=f"{rows:,}",
        digest=record["rows"],
        loading=LOADING[library],
        settings=json.dumps({**recipe, "seed": record["seed"]}, indent=2),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def _method(recipe: Mapping[str, Any]) -> str:
    """The training method in words: of SAP, only what was done."""
    if recipe["method"] == "sft":
        return SFT
    turned = TURNED.format(**recipe) if recipe["safe_cosine"] > -1 else ""
    if recipe["epsilon"] and recipe["beta"]:
        return f"{SAP}, {PROBED}{', and ' if turned else ''}{turned}"
    return f"{SFT} without the probes of {SAP}{', but ' if turned else ''}{turned}"
