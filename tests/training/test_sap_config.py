from dataclasses import fields

import pytest
from transformers import HfArgumentParser

from larf_curate.errors import InputError
from larf_curate.training import SapConfig


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": -1}, "wanted epsilon >= 0, got -1"),
        ({"beta": float("nan")}, "wanted beta >= 0, got nan"),
        ({"beta": float("inf")}, "wanted beta >= 0, got inf"),
        ({"safe_cosine": 1.0}, "wanted safe_cosine from -1 to below 1, got 1.0"),
        ({"safe_cosine": float("nan")}, "wanted safe_cosine from -1 to below 1, got nan"),
        ({"temperature": 0}, "wanted temperature > 0, got 0"),
        ({"contrastive_batch_size": 0}, "wanted contrastive_batch_size > 0, got 0"),
        ({"contrastive_max_length": -1}, "wanted contrastive_max_length > 0, got -1"),
        ({"probe_step": "adam"}, "wanted probe_step 'sign' or 'unit', got 'adam'"),
        ({"refusals": "theirs"}, "wanted refusals 'given' or 'own', got 'theirs'"),
        ({"fp16": True}, "does not support fp16"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "set use_reentrant=False"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        SapConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_options_read_from_a_command_line_and_all_have_help():
    (config,) = HfArgumentParser(SapConfig).parse_args_into_dataclasses(
        ["--epsilon", "0.01", "--probe_blocks", "3", "9", "--output_dir", "o", "--use_cpu"]
    )
    assert (config.epsilon, config.probe_blocks, config.learning_rate) == (0.01, [3, 9], 1e-4)
    own = [field for field in fields(SapConfig) if field.name in SapConfig.__annotations__]
    assert {"epsilon", "beta", "temperature", "refusals", "contrastive_batch_size"} < {field.name for field in own}
    assert [field.name for field in own if not field.metadata.get("help")] == []
