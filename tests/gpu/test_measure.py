"""The script of GPU measurements: all of it runs with tiny models on the CPU, and no section loses another."""

import json
import sys
from argparse import Namespace

import pytest

from tests.gpu import measure
from tests.gpu.sections import SECTIONS, peak_of
from tests.gpu.shapes import LLAMA_8B, SMOL, random_model, random_rows

TINY = Namespace(device="cpu", tiny=True, model=None)
KEYS = {
    "device": {"torch", "tflops"},
    "scoring": {"flop", "tokens_per_s", "ours_times", "relative_difference", "peak_mb"},
    "attention": {"skipped", "tokens_per_s", "relative_difference_to_sdpa"},
    "small_scoring": {"rows_per_s", "spearman", "largest_difference"},
    "neighbours": {"states_per_s", "skipped"},
    "gradient": {"seconds", "relative_difference"},
    "training": {"seconds_per_step", "peak_mb", "times_plain", "losses"},
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_section_runs_with_tiny_models_on_the_cpu(section, own_caches):
    found = list(section(TINY))
    assert KEYS[section.__name__] <= {key for each in found for key in each}
    json.dumps(found, allow_nan=False)
    for each in found:
        limit = 0.05 if each.get("dtype") == "bfloat16" else 1e-3
        difference = each.get("relative_difference", each.get("relative_difference_to_sdpa", 0))
        assert (difference["largest"] if isinstance(difference, dict) else difference) < limit


def test_a_section_that_fails_or_is_slow_keeps_what_it_found():
    found = "import json, time; print('other words'); print(json.dumps({'a': float('nan')}), flush=True); "
    failed = measure.run_section([sys.executable, "-c", f"{found} raise SystemExit('no memory')"], 60)
    stopped = measure.run_section([sys.executable, "-c", f"{found} print('{{', end='', flush=True); time.sleep(99)"], 3)
    done = measure.run_section([sys.executable, "-c", found], 60)
    late = measure.run_section([sys.executable, "-c", found], 0)
    assert [run["status"] for run in (failed, stopped, done, late)] == ["failed", "stopped", "done", "stopped"]
    assert [run["found"] for run in (failed, stopped, done, late)] == [[{"a": "NaN"}]] * 3 + [[]]
    assert "no memory" in failed["error"]
    assert "error" not in done


def test_the_file_is_written_after_each_section_within_the_time(tmp_path, monkeypatch):
    limits = []

    def fake(command, limit):
        limits.append(limit)
        if len(limits) == 3:
            raise KeyboardInterrupt
        return {"status": "done", "seconds": 1.0, "found": [{"name": command[command.index("--section") + 1]}]}

    monkeypatch.setattr(measure, "run_section", fake)
    options = Namespace(
        seconds=100, sections=list(KEYS), device="cpu", tiny=True, model=None, output=tmp_path / "gpu.json"
    )
    with pytest.raises(KeyboardInterrupt):
        measure.measure(options)
    assert list(json.loads(options.output.read_text())) == ["device", "scoring"]
    assert limits[0] == SECTIONS[measure.NAMES["device"]]
    assert limits[1] <= 100, "not the section's own 150 seconds"
    assert sum(SECTIONS.values()) <= 480


@pytest.mark.slow
def test_the_command_writes_what_a_section_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["measure", "--tiny", "--sections", "device", "-o", str(tmp_path / "gpu.json")])
    assert measure.main() == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "gpu.json").read_text())


def test_shapes_have_the_sizes_of_the_real_models():
    weights, keys = SMOL.block_weights()
    block = random_model(SMOL, "cpu", None, layers=1).get_decoder().layers[0]
    named = dict(block.named_parameters())
    assert weights == sum(weight.numel() for weight in named.values() if weight.ndim == 2)
    assert keys == sum(weight.numel() for name, weight in named.items() if "k_proj" in name or "v_proj" in name)
    assert 32 * LLAMA_8B.block_weights()[0] == pytest.approx(6.98e9, rel=1e-3)


def test_rows_of_random_tokens_are_as_long_as_instruction_data():
    rows = random_rows(2000, 300)
    lengths = [len(row.ids) for row in rows]
    assert sum(lengths) / len(rows) == pytest.approx(197, rel=0.1)
    assert {row.turns[0].end + 1 - len(row.ids) for row in rows} == {0}
    assert {len(row.ids) for row in random_rows(5, 300, length=77)} == {77}


def test_peaks_are_found_by_name():
    assert peak_of("NVIDIA H200") == 989e12
    assert peak_of("NVIDIA L40S") == 362e12
    assert peak_of("NVIDIA L4") == 121e12
    assert peak_of("NVIDIA A10G") == 125e12
    assert peak_of("Some GPU") is None
