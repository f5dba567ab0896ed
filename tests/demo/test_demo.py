"""The demo command with a tiny model and the real review server: killed, run again, run once more."""

import json
import time
from pathlib import Path

from click.testing import CliRunner
from datasets import Dataset, load_dataset

from larf_curate import __version__
from larf_curate import server as review_server
from larf_curate.cli import main
from larf_curate.cli.demo import STEPS
from larf_curate.data import load_rows
from larf_curate.records import write_sealed
from larf_curate.server import EmbeddedServer
from tests.fixtures.fresh_process import start

FLAGGED = 33  # 15 % of 222 rows


def command(folder: Path, model: Path) -> list[str]:
    return ["demo", "--no-browser", "--json", "--model", str(model), "-o", str(folder)]


def use_server(home: Path) -> type[EmbeddedServer]:
    """The demo's server class, on a home of the test's."""

    class Server(EmbeddedServer):
        def __init__(self, *, port, say):
            super().__init__(home, port=port, say=say)

    return Server


def run_demo(folder, model, home):
    """What runs in a process of its own."""
    review_server.EmbeddedServer = use_server(home)
    main(command(folder, model))


def demo(folder, model):
    result = CliRunner().invoke(main, command(folder, model))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), result.stderr


def read(folder: Path) -> Dataset:
    return load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train")


def test_the_demo_goes_the_whole_way_after_a_kill_and_again(tiny_llama, argilla_server, tmp_path, monkeypatch):
    out, log = tmp_path / "demo", tmp_path / "log"
    process = start(run_demo, out, tiny_llama, argilla_server.home.path, log=log)
    while not (out / "selection" / "selection.json").exists():
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    process.kill()
    process.join()

    monkeypatch.setattr(review_server, "EmbeddedServer", use_server(argilla_server.home.path))
    scored = (out / "scored" / "demo.parquet").stat().st_mtime_ns
    result, said = demo(out, tiny_llama)
    assert (out / "scored" / "demo.parquet").stat().st_mtime_ns == scored
    assert argilla_server.status().answering  # it ran before, so it was left running
    rows = load_rows("demo")
    harmful = {row["id"] for row in rows if row["is_harmful"]}
    flagged = set(read(out / "selection" / "flagged")["id"])
    assert len(flagged) == FLAGGED
    assert result["harmful"] == {"flagged": len(flagged & harmful), "all": len(harmful)}
    published = read(out / "published" / "data")
    assert sorted(published["id"]) == sorted({row["id"] for row in rows} - (flagged & harmful))
    counts = {"rows": len(rows), "flagged": FLAGGED, "removed": len(flagged & harmful), "withheld": 0}
    assert counts.items() <= result["counts"].items()
    for step in STEPS.values():
        assert step in said
    assert result["review_page"] in said
    assert f"rows {len(rows)} · of larf-curate {__version__}" in (out / "report.html").read_text()
    for noise in ("Flattening", "Creating parquet", "Generating", "Traceback"):
        assert noise not in said

    again, _ = demo(out, tiny_llama)
    assert {key: again[key] for key in ("counts", "harmful", "published")} == {
        key: result[key] for key in ("counts", "harmful", "published")
    }
    assert sorted(read(out / "published" / "data")["id"]) == sorted(published["id"])


def test_a_folder_of_another_model_is_refused(tiny_llama, tiny_qwen2, tmp_path, own_caches):
    (tmp_path / "scored").mkdir()
    write_sealed(tmp_path / "scored" / "plan.json", {"source": {}, "scorer": {}, "rows": 3})
    (tmp_path / "scored" / "demo.parquet").write_bytes(b"")
    result = CliRunner().invoke(main, command(tmp_path, tiny_qwen2))
    assert result.exit_code == 2
    assert "or another folder" in result.stderr
