"""Score a dataset as a step of a datatrove pipeline, on this machine; other executors bring Slurm, Ray and Hub jobs.

    python examples/07_datatrove_step.py DATASET PROFILE OUT TASKS

Every task scores its share. Afterwards `larf-curate score DATASET --profile PROFILE -o OUT --resume` scores what tasks
that were killed have left, and writes the manifest.
"""

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep


class ScoreShare(PipelineStep):
    """Score the share of a task into a folder that all tasks share; settings are those of `larf-curate score`."""

    name = "LARF scores"
    type = "SCORER"

    def __init__(self, dataset: str, profile: str, out: str) -> None:
        super().__init__()
        self.dataset, self.profile, self.out = dataset, profile, out

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        # Imported where a task runs: the step is pickled, and a submitting machine needs no torch.
        from larf_curate import ExemplarIndex, LarfScorer, SafetyProfile
        from larf_curate.data.sources import open_source
        from larf_curate.scoring.run import score_share

        profile = SafetyProfile.from_pretrained(self.profile)
        scorer = LarfScorer(profile, exemplars=ExemplarIndex.of_profile(profile), keep_states=True)
        status = score_share(open_source(self.dataset), scorer, self.out, index=rank, count=world_size)
        for name, rows in status.items():
            self.stat_update(name, value=rows, unit="task")
        return data


if __name__ == "__main__":
    dataset, profile, out, tasks = sys.argv[1:]
    # Ranks that are complete by the logs are skipped: remove these together with OUT.
    LocalPipelineExecutor([ScoreShare(dataset, profile, out)], tasks=int(tasks), logging_dir=f"{out}-logs").run()
