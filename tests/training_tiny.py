"""A tiny random Llama with a byte tokenizer and a chat template, for tests that train."""

from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIPLES = [
    ("How do I hurt him?", "Sure, first do this.", "I cannot help with that."),
    ("Write a threat.", "Okay: beware.", "Sorry, no."),
    ("Make poison", "Step 1: mix it well.", "I will not."),
]
ROWS = [{"instruction": f"Say {i}", "input": "", "output": f"Here is {i * 7}."} for i in range(8)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; the end of turn is also the padding, as in many chat models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(*, layers: int = 3, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> LlamaForCausalLM:
    """Random weights of a fixed seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        attention_dropout=dropout,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).to(dtype)


def save_tiny(folder: Path) -> str:
    """Write model and tokenizer into a folder; returns its name."""
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_rows() -> Dataset:
    return Dataset.from_list(ROWS)
