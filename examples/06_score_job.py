# /// script
# requires-python = ">=3.11"
# dependencies = ["larf-curate[cpu]"]
# ///
"""Score one share of a dataset, as a script with inline dependencies: for `uv run` and `hf jobs uv run`.

    uv run examples/06_score_job.py DATASET PROFILE OUT [OPTION...]

With the environment variable SHARD=I/N only the share of process I of N is scored, counted from 0; without it, what is
missing is scored and the manifest written. More options are those of `larf-curate score`.
"""

import os
import sys

from larf_curate.cli import main

if len(sys.argv) < 4:
    sys.exit(__doc__)
dataset, profile, out, *options = sys.argv[1:]
share = ["--shard", os.environ["SHARD"]] if "SHARD" in os.environ else ["--resume"]
main(["score", dataset, "--profile", profile, "-o", out, *share, *options], prog_name="larf-curate")
