"""Models of random weights, made on the device in the shapes of real ones, and rows of random tokens for them."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from larf_curate.conversation.truncation import Tokens, Turn
from tests.fixtures.tiny import bpe_tokenizer, save


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int

    def block_weights(self):
        """Weights of a block's projections, and those of keys and values among them."""
        keys = 2 * self.hidden_size**2 * self.num_key_value_heads // self.num_attention_heads
        return 2 * self.hidden_size**2 + keys + 3 * self.hidden_size * self.intermediate_size, keys


LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128256)
SMOL = Shape(576, 1536, 30, 9, 3, 320)
"""SmolLM2-135M with the vocabulary of the tokenizer that is made here."""
TINY = Shape(64, 128, 4, 4, 2, 320)


def random_model(shape, device, dtype, *, layers=None):
    """A causal language model, made on the device; nothing is downloaded."""
    sizes = {**vars(shape), "num_hidden_layers": layers or shape.num_hidden_layers}
    config = LlamaConfig(**sizes, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def saved_model(shape, device, folder):
    """Folder of a random model in float32, with a tokenizer and a chat template."""
    return str(save(random_model(shape, device, torch.float32).cpu(), bpe_tokenizer(), folder))


def random_rows(count, vocabulary, *, length=None, seed=0):
    """Conversations of random tokens: of one length, or of lengths as in instruction data, about 200 in the mean."""
    rng = np.random.default_rng(seed)
    lengths = [length] * count if length else rng.lognormal(5.1, 0.6, size=count).clip(32, 1024).astype(int)
    return [
        Tokens(rng.integers(3, vocabulary, size=tokens).tolist(), (Turn(int(tokens) // 3, int(tokens) - 1),))
        for tokens in lengths
    ]
