"""The recipes of docs/several-machines.md, run as they are written on two simulated tasks instead of sixteen."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from larf_curate.data.sources import open_source
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from tests.fixtures.long import at_length
from tests.fixtures.models import six_pairs

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "docs" / "several-machines.md").read_text(encoding="utf-8")
PROGRAMS = {
    "larf-curate": 'exec python -m larf_curate "$@"',
    # Runs all tasks of an array job, or the wrapped command of one that waits for it.
    "sbatch": r"""
if [ "$1" = --parsable ]; then
    for i in $(sed -n 's/^#SBATCH --array=\([0-9]*\)-\([0-9]*\) .*/\1 \2/p' "$2" | xargs seq); do
        SLURM_ARRAY_TASK_ID=$i bash "$2" >&2
    done
    echo 7
else
    [ "$1" = --dependency=afterany:7 ] && ls scored > before_resume && bash -c "${@: -1}"
fi""",
    # Sets the variables of -e, leaves all other options out, and mounts nothing: /scores is a folder of the test.
    "hf": r"""
[ "$1 $2 $3" = "jobs uv run" ] || exit 2
while [ "$1" != examples/06_score_job.py ]; do
    if [ "$1" = -e ]; then export "$2"; fi
    shift
done
[ -n "$SHARD" ] || ls scored > before_resume
exec python "$@" --device cpu""",
}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_caches")]


def blocks(section, language):
    """Code blocks of a section, for two tasks instead of sixteen."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", RECIPES, re.DOTALL | re.MULTILINE)
    few = text.replace("0-15", "0-1").replace("seq 0 15", "seq 0 1").replace("completions: 16", "completions: 2")
    return re.findall(rf"```{language}\n(.*?)```", few.replace("/16", "/2"), re.DOTALL)


@pytest.fixture
def here(tmp_path, tiny_llama):
    """A folder with data of two files, a profile and what a plain run gives; its programs come first."""
    (tmp_path / "data").mkdir()
    for name in "ab":
        rows = [{"question": f"How {name} {i}?", "answer": f"Sure, {name} answer {i}."} for i in range(4)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile = SafetyProfile.build(tiny_llama, six_pairs(), layers=(1,), signal="larf", dtype="float32", device="cpu")
    profile.save_pretrained(tmp_path / "profile")
    scorer = LarfScorer(profile, exemplars=ExemplarIndex.of_profile(profile), keep_states=True, device="cpu")
    score_source(open_source(str(tmp_path / "data")), scorer, tmp_path / "plain")
    (tmp_path / "bin").mkdir()
    for name, script in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script.lstrip()}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def shell(command, here, **variables):
    """Run a command as in the documentation, from the folder."""
    path = os.pathsep.join((str(here / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run(["bash", "-euc", command], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_equal(here):
    """Both shares were there before the run that resumed, which gave the files of a plain run."""
    assert (here / "before_resume").read_text().split() == ["a.parquet", "b.parquet", "plan.json"]
    names = sorted(path.name for path in (here / "plain").iterdir())
    assert sorted(path.name for path in (here / "scored").iterdir()) == names
    for name in names:
        assert (here / "scored" / name).read_bytes() == (here / "plain" / name).read_bytes(), name


@at_length
def test_slurm(here):
    script, submission = blocks("Slurm", "bash")
    (here / "score.sbatch").write_text(script)
    shell(submission, here)
    check_equal(here)


@at_length
def test_kubernetes(here):
    (text,) = blocks("Kubernetes", "yaml")
    job = yaml.safe_load(text)["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (command,) = container["args"]
    assert (job["completionMode"], container["command"]) == ("Indexed", ["sh", "-c"])
    for index in range(job["completions"]):
        shell(command, here, JOB_COMPLETION_INDEX=str(index))
    shell("ls scored > before_resume", here)
    shell(re.sub("--shard .*", "--resume", command), here)
    check_equal(here)


@at_length
def test_hub_jobs(here):
    jobs, last = blocks("Hub jobs", "bash")
    for command in (jobs, last):
        shell(command.replace("DATASET PROFILE /scores/scored", "data/ profile/ scored/"), here)
    check_equal(here)
