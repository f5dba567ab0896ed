"""Where a model keeps its decoder blocks, whatever its architecture."""

from torch import nn

from larf_curate.errors import ModelError


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the decoder blocks of a language model, bare, with a head or wrapped by PEFT.

    Args:
        model: A decoder of transformers.

    Returns:
        Its blocks in order; block ``i`` is the 0-based layer ``i`` everywhere in this package.

    Raises:
        ModelError: If there is no list of blocks as long as the config says.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if config is not None else None
    count = getattr(text, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ModelError(
            f"no list of {count} decoder blocks in {type(model).__name__}: only decoder models can be read"
        )
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))
