"""Tiny random models of several architectures, and a word tokenizer, for tests of finding layers."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from larf_curate.layers.subject import Subject

WORDS = (
    "system user assistant be kind how do i kill a process shoot photo blow up picture the best way to crush garlic "
    "sorry cannot help with that sure here is first step yes no you may it this . ? , ' of course take"
).split()
TEMPLATE = (
    "<s> system be kind </s> {% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant{% endif %}"
)
PROMPTS = [
    "how do i kill a process ?",
    "how do i shoot a photo ?",
    "blow up a picture",
    "the best way to crush garlic",
    "how may you help me with this process , step 2 ?",
    "kill it",
    "shoot the garlic of the course",
]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.35,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
ARCHITECTURES = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "Gemma4Text": {
        **GROUPED,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_kv_shared_layers": 1,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
    },
    "Phi3": GROUPED,
    "GPTNeoX": SIZES,
    "Olmo2": GROUPED,
    "Falcon": {key: value for key, value in SIZES.items() if key != "intermediate_size"},
    "Mpt": {
        "vocab_size": 64,
        "d_model": 32,
        "n_layers": 3,
        "n_heads": 4,
        "max_seq_len": 256,
        "initializer_range": 0.35,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
"""Falcon adds to a projection's output in place; MPT takes no positions; Gemma 4's last block has no keys."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = ["[PAD]", "<s>", "</s>", "[UNK]", *dict.fromkeys(WORDS)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", pad_token="[PAD]", unk_token="[UNK]"
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(architecture: str = "Llama", *, seed: int = 0, **changes: object) -> transformers.PreTrainedModel:
    """A random model, biases random too."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(**{**ARCHITECTURES[architecture], **changes})
    model = getattr(transformers, f"{architecture.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
    return model


def tiny_subject(architecture: str = "Llama", *, seed: int = 0, **changes: object) -> Subject:
    return Subject(tiny_model(architecture, seed=seed, **changes), tiny_tokenizer(), "tiny")
