"""The gradient that finds layers on the GPU against the CPU."""

import numpy as np
import pytest

from larf_curate.layers.gradient import block_gradients
from larf_curate.layers.openings import Openings
from larf_curate.layers.subject import load_subject
from tests.fixtures.gpu import needs_gpu
from tests.fixtures.tiny import PROMPTS, save, tiny_model, word_tokenizer

pytestmark = needs_gpu
OPENINGS = Openings((4, 5), (6, 7), 8, (9,), (10, 11))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_gradients_equal_those_of_the_cpu(tmp_path, dtype, tolerance):
    folder, found = save(tiny_model(), word_tokenizer(), tmp_path), {}
    for device, precision in (("cpu", "float32"), ("cuda", dtype)):
        subject = load_subject(folder, device=device, dtype=precision)
        prompts = subject.encode_prompts(PROMPTS, new_tokens=4)
        with subject.frozen():
            found[device] = block_gradients(subject, prompts, OPENINGS)
    assert np.linalg.norm(found["cuda"] - found["cpu"]) < tolerance * np.linalg.norm(found["cpu"])
