"""Ways to read the hidden states of conversations: what a user writes with each library, loading included.

Every function takes a model's folder or id, 0-based decoder blocks, the name of a dtype and a device, and returns a
function from n conversations, lists of messages, to the outputs of these blocks at each conversation's last token:
shape (n, layers, d), or (n, 1, d) of the deepest block alone where the library gives no other. The number of lines that
`tests.benchmarks.peers` reports is that of the body. Libraries are imported where they are used, so that a process
pays for its own only.

Libraries that batch rows as they come are given the number that is fastest: on a CPU one, which needs no padding and
fits into its caches, and elsewhere 32. The plain ``map`` has 32 everywhere, as people write it.
"""


def fast_batch(device):
    """Number of rows, unsorted, that run fastest together."""
    return 1 if device == "cpu" else 32


def ours(model_id, layers, dtype, device):
    from larf_curate.models.loading import load_reader
    from larf_curate.models.source import ModelSource

    reader = load_reader(ModelSource(model_id=model_id, dtype=dtype), layers, device=device)

    def read(chats):
        rendered = reader.renderer()([{"messages": chat} for chat in chats])
        return reader([item.tokens for item in rendered])["last"]

    return read


def authors_loop(model_id, layers, dtype, device):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_id)
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=dtype).to(device).eval()

    @torch.no_grad()
    def read(chats):
        states = []
        for chat in chats:
            inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True).to(device)
            hidden = model(**inputs, output_hidden_states=True).hidden_states
            states.append(torch.stack([hidden[layer + 1][0, -1] for layer in layers]).float().cpu())
        return torch.stack(states)

    return read


def plain_map(model_id, layers, dtype, device):
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_id, padding_side="right")
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=dtype).to(device).eval()

    @torch.no_grad()
    def add_states(batch):
        inputs = tokenizer.apply_chat_template(batch["chat"], return_tensors="pt", return_dict=True, padding=True)
        hidden = model(**inputs.to(device), output_hidden_states=True).hidden_states
        ends = inputs["attention_mask"].sum(1) - 1
        states = torch.stack([hidden[layer + 1][torch.arange(len(ends)), ends] for layer in layers], dim=1)
        return {"states": states.float().cpu().numpy()}

    def read(chats):
        made = Dataset.from_dict({"chat": chats}).map(add_states, batched=True, batch_size=32)
        return np.array(made.with_format("numpy")["states"])

    return read


def tuned_loop(model_id, layers, dtype, device):
    import torch
    from transformers import AutoModel, AutoTokenizer

    size = 4 if device == "cpu" else 64
    tokenizer = AutoTokenizer.from_pretrained(model_id, padding_side="right")
    model = AutoModel.from_pretrained(model_id, dtype=dtype).to(device).eval()
    model.layers, model.norm = model.layers[: max(layers) + 1], torch.nn.Identity()

    @torch.no_grad()
    def read(chats):
        ids = tokenizer.apply_chat_template(chats, return_dict=True)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        states = torch.empty(len(ids), len(layers), model.config.hidden_size)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            inputs = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(device)
            hidden = model(**inputs, output_hidden_states=True).hidden_states
            ends = inputs["attention_mask"].sum(1) - 1
            read = [hidden[layer + 1][torch.arange(len(rows)), ends] for layer in layers]
            states[rows] = torch.stack(read, dim=1).float().cpu()
        return states

    return read


def feature_extraction(model_id, layers, dtype, device):
    import torch
    from transformers import AutoModel, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(model_id)
    model = AutoModel.from_pretrained(model_id, dtype=dtype)
    model.layers, model.norm = model.layers[: max(layers) + 1], torch.nn.Identity()
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device=device)

    def read(chats):
        texts = tokenizer.apply_chat_template(chats, tokenize=False)
        found = extract(texts, return_tensors=True, tokenize_kwargs={"add_special_tokens": False})
        return torch.stack([states[0, -1:].float().cpu() for states in found])

    return read


def nnsight(model_id, layers, dtype, device):
    import torch
    from nnsight import TransformersModel

    model = TransformersModel(model_id, task="text-generation", dtype=dtype, device_map=device, dispatch=True)
    size = fast_batch(device)

    @torch.no_grad()
    def read(chats):
        texts = model.tokenizer.apply_chat_template(chats, tokenize=False)
        states = []
        for start in range(0, len(texts), size):
            with model.trace(texts[start : start + size]) as tracer:
                found = [model.model.layers[layer].output[:, -1] for layer in layers].save()
                tracer.stop()
            states.append(torch.stack(found, dim=1).float().cpu())
        return torch.cat(states)

    return read


def nnterp(model_id, layers, dtype, device):
    from nnterp import StandardizedTransformer
    from nnterp.nnsight_utils import collect_token_activations_batched

    model = StandardizedTransformer(model_id, dtype=dtype, device_map=device)

    def read(chats):
        texts = model.tokenizer.apply_chat_template(chats, tokenize=False)
        return (
            collect_token_activations_batched(model, texts, fast_batch(device), layers=layers).transpose(0, 1).float()
        )

    return read


def transformer_lens(model_id, layers, dtype, device):
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(model_id, dtype=getattr(torch, dtype), device=device)
    names = [f"blocks.{layer}.hook_out" for layer in layers]

    @torch.no_grad()
    def read(chats):
        states = []
        for chat in chats:
            ids = model.tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False).to(device)
            _, cache = model.run_with_cache(ids, names_filter=names, stop_at_layer=max(layers) + 1, pos_slice=-1)
            states.append(torch.cat([cache[name].flatten(0, -2) for name in names]).float().cpu())
        return torch.stack(states)

    return read


def steering_vectors(model_id, layers, dtype, device):
    import torch
    from steering_vectors import record_activations
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_id, padding_side="right")
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=dtype).to(device).eval()
    size = fast_batch(device)

    @torch.no_grad()
    def read(chats):
        states = []
        for start in range(0, len(chats), size):
            batch = chats[start : start + size]
            inputs = tokenizer.apply_chat_template(batch, return_tensors="pt", return_dict=True, padding=True)
            with record_activations(model, layer_nums=layers) as found:
                model(**inputs.to(device))
            rows, ends = torch.arange(len(batch)), inputs["attention_mask"].sum(1) - 1
            states.append(torch.stack([found[layer][0][rows, ends] for layer in layers], dim=1).float().cpu())
        return torch.cat(states)

    return read


def sentence_transformers(model_id, layers, dtype, device):
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    decoder = Transformer(model_id, model_kwargs={"dtype": dtype})
    model, width = decoder.auto_model, decoder.auto_model.config.hidden_size
    model.layers, model.norm = model.layers[: max(layers) + 1], torch.nn.Identity()
    encoder = SentenceTransformer(modules=[decoder, Pooling(width, "lasttoken")], device=device)

    def read(chats):
        return encoder.encode(chats, batch_size=fast_batch(device), convert_to_tensor=True).float().cpu().unsqueeze(1)

    return read


def vllm_lens(model_id, layers, dtype, device):
    import torch
    from vllm import LLM, SamplingParams

    model = LLM(model_id, dtype=dtype)
    once = SamplingParams(max_tokens=1, extra_args={"output_residual_stream": list(layers)})

    def read(chats):
        texts = model.get_tokenizer().apply_chat_template(chats, tokenize=False)
        found = model.generate([{"prompt": text} for text in texts], once)
        return torch.stack([output.activations["residual_stream"][:, -1] for output in found]).float()

    return read
