"""What `tests.gpu.measure` measures; every section yields its figures one by one, so that a stop loses none."""

import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers.utils import is_flash_attn_2_available

from larf_curate.models.devices import default_batch_tokens
from larf_curate.models.hidden_states import StateReader
from tests.benchmarks.memory import peak_rss
from tests.gpu.shapes import LLAMA_8B, SMOL, TINY, random_model, random_rows, saved_model

DEEPEST = 12
"""Deepest block that is read of the large shape: 13 of 32 blocks run."""
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "L4": 121e12}
"""Dense bfloat16 FLOP/s by a part of the device's name, from the vendor's data sheets; the first that fits."""
DISTRIBUTIONS = ("larf-curate", "torch", "transformers", "numpy", "faiss-gpu", "faiss-cpu", "flash-attn", "trl", "peft")


def on_gpu(options):
    return options.device.startswith("cuda")


def dtype_of(options):
    return torch.bfloat16 if on_gpu(options) else torch.float32


def synchronize(options):
    if on_gpu(options):
        torch.cuda.synchronize()


def timed(options, run, *arguments):
    """Seconds of a call and what it returns."""
    synchronize(options)
    start = time.perf_counter()
    result = run(*arguments)
    synchronize(options)
    return time.perf_counter() - start, result


def memory(options):
    """Peak megabytes: of the device since `forget_peak`, or of this process without one."""
    return (torch.cuda.max_memory_allocated() if on_gpu(options) else peak_rss()) / 1e6


def forget_peak(options):
    if on_gpu(options):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_of(name):
    """Data-sheet FLOP/s of a device by its name; None if it is not known."""
    return next((value for part, value in PEAKS.items() if part in name), None)


def device(options):
    """The device, the versions, and the rate of a large matrix product."""
    found = {"date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(), "device": options.device}
    for name in DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if on_gpu(options):
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
        found |= {"memory_mb": properties.total_memory / 1e6, "capability": torch.cuda.get_device_capability(0)}
        found["peak_tflops"] = (peak_of(properties.name) or 0) / 1e12 or None
    yield found
    size, seconds = (256, 0.1) if options.tiny else (8192, 2.0)
    factors = [torch.randn(size, size, device=options.device, dtype=dtype_of(options)) for _ in range(2)]
    torch.mm(*factors)
    count, spent = 0, 0.0
    while spent < seconds:
        spent += timed(options, torch.mm, *factors)[0]
        count += 1
    yield {"matrix_product": size, "tflops": 2 * size**3 * count / spent / 1e12}


def scoring(options):
    """Rows of random tokens through 13 blocks of the large shape: ours with several batches, and the authors' loop."""
    shape, deepest, count = (TINY, 2, 24) if options.tiny else (LLAMA_8B, DEEPEST, 4000)
    model = random_model(shape, options.device, dtype_of(options))
    rows = random_rows(count, shape.vocab_size)
    tokens = sum(len(row.ids) for row in rows)
    weights, keys = shape.block_weights()
    flop = 2 * (tokens * (weights * deepest + keys) + count * (weights - keys))
    yield {"shape": vars(shape), "rows": count, "tokens": tokens, "blocks": deepest + 1, "flop": flop}
    best = 0.0
    for factor in (1, 2, 4):
        reader = reader_of(model, deepest, batch_tokens=factor * default_batch_tokens(options.device))
        reader(rows[: count // 8])
        forget_peak(options)
        seconds, states = timed(options, reader, rows)
        best = max(best, tokens / seconds)
        found = {"way": "ours", "batch_tokens": reader.batch_tokens, "rows_per_s": count / seconds}
        found |= {"tokens_per_s": tokens / seconds, **share(options, flop / seconds), "peak_mb": memory(options)}
        yield found
    forget_peak(options)
    yield authors_loop(options, model, rows, deepest, states["last"][:, 0], best)


def reader_of(model, deepest, **settings):
    """A reader of one block of a loaded model, of conversations that are tokenized already."""
    return StateReader(model=model.get_decoder(), tokenizer=None, layers=(deepest,), **settings)


def share(options, rate):
    """A rate as FLOP/s, and as a share of the data sheet's peak if that is known."""
    peak = peak_of(torch.cuda.get_device_name()) if on_gpu(options) else None
    return {"tflops": rate / 1e12} | ({"share_of_peak": rate / peak} if peak else {})


@torch.no_grad()
def authors_loop(options, model, rows, deepest, states, our_rate):
    """The whole model with its head and all hidden states, one row at a time, for at most 20 seconds."""
    run, tokens, spent, errors = 0, 0, 0.0, []
    for row, ours in zip(rows, states, strict=True):
        ids = torch.tensor([row.ids], device=options.device)
        seconds, output = timed(options, lambda given: model(given, output_hidden_states=True, use_cache=False), ids)
        if run:  # the first is warm-up
            spent += seconds
            tokens += len(row.ids)
        own = output.hidden_states[deepest + 1][0, -1].float().cpu().numpy()
        errors.append(float(np.linalg.norm(ours - own) / np.linalg.norm(own)))
        run += 1
        if spent > (0.5 if options.tiny else 20):
            break
    found = {"way": "the authors' loop", "rows": run - 1, "rows_per_s": (run - 1) / spent, "peak_mb": memory(options)}
    found |= {"tokens_per_s": tokens / spent, "ours_times": our_rate / (tokens / spent)}
    return found | {"relative_difference": {"median": float(np.median(errors)), "largest": max(errors)}}


def small_model(options, folder):
    """The model of ``--model``, or one of random weights in the shape of SmolLM2-135M."""
    shape = TINY if options.tiny else SMOL
    return options.model or saved_model(shape, options.device, folder), "given" if options.model else "random weights"


def small_scoring(options):
    """`LarfScorer` from rows to columns with a small model: in both dtypes on this device, and on the CPU."""
    from datasets import Dataset, disable_progress_bars

    from larf_curate import LarfScorer, ReferenceSet, SafetyProfile
    from larf_curate.data import load_rows

    disable_progress_bars()
    packaged, whole = load_rows("neutral"), ReferenceSet.load("builtin")
    pairs, count = (6, 16) if options.tiny else (len(whole), len(packaged))
    refs = ReferenceSet(
        unsafe=whole.unsafe[:pairs], safe=whole.safe[:pairs], labels=whole.labels[:pairs], source="builtin"
    )
    rows = Dataset.from_list([{"instruction": r["instruction"], "output": r["output"]} for r in packaged[:count]])
    with tempfile.TemporaryDirectory() as folder:
        model, weights = small_model(options, folder)
        settings = {"layers": [2 if options.tiny else DEEPEST], "signal": "larf", "neutral": packaged[:count]}
        wanted = None
        for dtype, names in (("float32", dict.fromkeys(("cpu", options.device))), ("bfloat16", [options.device])):
            profile = SafetyProfile.build(model, refs, **settings, dtype=dtype, device=options.device)
            for name in names:
                scorer = LarfScorer(profile, device=name)
                scorer(rows[:8])
                forget_peak(options)
                seconds, scored = timed(options, scorer, rows[:])
                scores = np.array(scored["larf_score"])
                wanted = scores if wanted is None else wanted
                found = {"device": name, "dtype": dtype, "weights": weights, "rows_per_s": count / seconds}
                found["largest_difference"] = float(np.abs(scores - wanted).max())
                found["spearman"] = float(spearmanr(scores, wanted).statistic)
                yield found | {"peak_mb": memory(options)}


def attention(options):
    """Tokens per second with SDPA and with FlashAttention, for short and long rows, and how far their states differ."""
    shape, deepest = (TINY, 2) if options.tiny else (LLAMA_8B, DEEPEST)
    model = random_model(shape, options.device, dtype_of(options), layers=deepest + 1)
    kinds = ["sdpa", "flash_attention_2"]
    if not (on_gpu(options) and is_flash_attn_2_available()):
        yield {"attention": kinds.pop(), "skipped": "flash-attn is not installed or there is no GPU"}
    for length, count in ((200, 8), (400, 4)) if options.tiny else ((200, 1000), (2000, 200), (8000, 40)):
        rows, states = random_rows(count, shape.vocab_size, length=length), {}
        for kind in kinds:
            model.set_attn_implementation(kind)
            reader = reader_of(model, deepest)
            reader(rows[: count // 4])
            forget_peak(options)
            seconds, read = timed(options, reader, rows)
            states[kind] = read["last"]
            difference = np.linalg.norm(states[kind] - states["sdpa"]) / np.linalg.norm(states["sdpa"])
            found = {"attention": kind, "length": length, "tokens_per_s": length * count / seconds}
            yield found | {"relative_difference_to_sdpa": float(difference), "peak_mb": memory(options)}


def neighbours(options):
    """Nearest exemplars by FAISS on the CPU and on the GPU: states per second, and whether they find the same."""
    import faiss

    from larf_curate.scoring.search import build_search

    count, width, queries = (2000, 32, 50) if options.tiny else (100_000, 4096, 2000)
    rng = torch.Generator(device=options.device).manual_seed(0)
    made = torch.randn(count + queries, width, generator=rng, device=options.device)
    units = nn.functional.normalize(made).cpu().numpy()
    vectors, asked = units[:count], units[count:]
    flat = faiss.IndexFlatIP(width)
    flat.add(vectors)
    seconds, (cosines, nearest) = timed(options, flat.search, asked, 10)
    found = {"search": "CPU", "threads": faiss.omp_get_max_threads(), "count": count, "width": width}
    yield found | {"states_per_s": queries / seconds}
    if not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()):
        yield {"search": "GPU", "skipped": "this FAISS has no GPU support, or there is no GPU"}
        return
    index = build_search(vectors).index
    index.search(asked[:10], 10)
    seconds, (near, ids) = timed(options, index.search, asked, 10)
    same = np.mean([len({*a} & {*b}) / 10 for a, b in zip(ids, nearest, strict=True)])
    found = {"search": "GPU", "states_per_s": queries / seconds, "same_neighbours": float(same)}
    yield found | {"largest_difference": float(np.abs(near - cosines).max())}


def gradient(options):
    """The derivatives that find layers, for 48 prompts: on this device in both dtypes against the CPU in float32."""
    from larf_curate.data.prompts import overrejection_prompts
    from larf_curate.layers.gradient import block_gradients
    from larf_curate.layers.openings import Openings
    from larf_curate.layers.subject import load_subject

    openings = Openings((4, 5), (6, 7))  # of no meaning: the cost does not depend on the tokens
    own = None
    with tempfile.TemporaryDirectory() as folder:
        model, weights = small_model(options, folder)
        for name, dtype in (("cpu", "float32"), (options.device, "float32"), (options.device, "bfloat16")):
            subject = load_subject(model, device=name, dtype=dtype)
            prompts = subject.encode_prompts(overrejection_prompts()[: 4 if options.tiny else 48], new_tokens=4)
            with subject.frozen():
                block_gradients(subject, prompts[:2], openings)
                forget_peak(options)
                seconds, found = timed(options, block_gradients, subject, prompts, openings)
            own = found if own is None else own
            entry = {"device": name, "dtype": dtype, "weights": weights, "prompts": len(prompts), "seconds": seconds}
            difference = float(np.linalg.norm(found - own) / np.linalg.norm(own))
            yield entry | {"relative_difference": difference, "peak_mb": memory(options)}


def training(options):
    """Seconds and memory of a step of SFT and of SAP, and what SAP's costs against its plain part."""
    from datasets import Dataset

    from larf_curate.data import load_rows
    from larf_curate.training.finetune import fine_tune
    from larf_curate.training.recipe import Recipe

    steps, batch, length = (2, 2, 64) if options.tiny else (6, 16, 256)
    packaged = load_rows("neutral")[: steps * batch]
    rows = Dataset.from_list([{"instruction": r["instruction"], "output": f"{r['output']} " * 40} for r in packaged])
    with tempfile.TemporaryDirectory() as folder:
        model, weights = small_model(options, f"{folder}/model")
        for method in ("sft", "sap"):
            forget_peak(options)
            recipe = Recipe(
                method=method, epochs=1, batch_size=batch, max_length=length, refusals="given", bf16=on_gpu(options)
            )
            trainer = fine_tune(model, rows, f"{folder}/{method}", recipe=recipe)
            logged = [entry for entry in trainer.state.log_history if "seconds_per_step" in entry]
            found = {"method": method, "weights": weights, "batch": batch, "length": length, "steps": len(logged)}
            found["seconds_per_step"] = float(np.median([entry["seconds_per_step"] for entry in logged[1:]]))
            found |= {"peak_mb": logged[-1]["peak_memory_mb"], "losses": [entry["loss"] for entry in logged]}
            yield found | ({"times_plain": float(logged[-1]["sap/cost"])} if method == "sap" else {})


SECTIONS = {  # the longest that each may take, in seconds
    device: 40,
    scoring: 150,
    attention: 70,
    small_scoring: 60,
    neighbours: 50,
    gradient: 50,
    training: 60,
}
