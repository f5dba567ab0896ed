"""The end-to-end demo on packaged rows: profile, score, select, report, review, pull, publish."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset
from typing_extensions import TypedDict

from larf_curate.columns import ROW_ID
from larf_curate.data import load_rows
from larf_curate.data.references import ReferenceSet
from larf_curate.data.sources import Piece, Source
from larf_curate.data.tables import no_progress_bars
from larf_curate.demo.model import demo_model
from larf_curate.models.source import ModelSource, count_layers
from larf_curate.profile import SafetyProfile
from larf_curate.publish import Publication, publish
from larf_curate.records import STRICT, read_sealed, seal, write_sealed
from larf_curate.report import write_report
from larf_curate.review import Outcome, PushResult, ReviewQueue
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.explanation import explain_flagged
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import Selection, select
from larf_curate.server import EmbeddedServer
from larf_curate.version import __version__

QUEUE = "larf-demo"
LABEL_COLUMN = "is_harmful"  # ground truth of the packaged rows
TOP_RATIO = 0.15
EXPLAINED_ROWS = 10
SETTINGS = "demo.json"
"""Name of the file that is written after a profile."""

StepCallback = Callable[[str], None]


class DemoSettings(TypedDict):
    """``demo.json``: the model and layers of the profile beside it."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    model: str
    layers: list[int] | Literal["all"]
    digest: str


@dataclass(kw_only=True)
class Demo:
    """One run of the demo; a run that was interrupted resumes from the results in its folder.

    Args:
        folder: Folder for all results.
        model: A chat model, as a folder or a Hub id (default: SmolLM2-135M-Instruct).
        layers: 0-based indices of decoder blocks (default: three blocks near the middle of the model).
        say: Called with the name of each step as it begins.
        seconds: Duration of each finished step, by its name; filled in by the run.
    """

    folder: Path
    model: str | None = None
    layers: list[int] | Literal["all"] | None = None
    say: StepCallback
    seconds: dict[str, float] = field(default_factory=dict)

    def score(self) -> Scored:
        """Build the profile and score the packaged rows."""
        with self._step("model"):
            model = self.model or demo_model()
        with self._step("profile"):
            profile = self._profile(model)
        with self._step("score"):
            rows = Dataset.from_list(load_rows("demo"))
            scorer = LarfScorer(profile, exemplars=ExemplarIndex.of_profile(profile), keep_states=True)
            description = {"dataset": "larf-curate demo", "rows": len(rows), "of": f"larf-curate {__version__}"}
            source = Source(pieces=(Piece(name="demo", rows=rows),), description=description)
            score_source(source, scorer, self.folder / "scored", resume=True)
        return Scored.load(self.folder / "scored")

    def select(self, scored: Scored) -> Selection:
        """Flag the highest-scoring rows, explain the first of them by their tokens, and write the report."""
        profile = self.folder / "profile"
        with self._step("select"), no_progress_bars():
            selection = select(scored.rows, top_ratio=TOP_RATIO, source=scored.source_id, scored=scored.manifest)
            selection = explain_flagged(selection, SafetyProfile.from_pretrained(profile), rows=EXPLAINED_ROWS)
            selection.save(self.folder / "selection")
        with self._step("report"), no_progress_bars():
            write_report(self.folder / "selection", self.folder / "report.html", profile=profile)
        return selection

    def push(self, queue: ReviewQueue, selection: Selection) -> PushResult:
        """Push the flagged rows to the review queue."""
        with self._step("push"), no_progress_bars():
            return queue.push(selection)

    def decide(self, server: EmbeddedServer, queue: ReviewQueue, selection: Selection) -> None:
        """Submit decisions by script, from the ground truth in the packaged rows."""
        with self._step("decide"):
            # A separate account: a decision submitted as the owner could overwrite one that a person made.
            account = server.add_user("demo-reviewer")
            labels = dict(zip(selection.flagged[ROW_ID], selection.flagged[LABEL_COLUMN], strict=True))
            decisions = {row: "remove" if harmful else "keep" for row, harmful in labels.items()}
            queue.submit(decisions, api_key=account.api_key)

    def pull(self, queue: ReviewQueue, selection: Selection) -> Outcome:
        """Pull the decisions, apply them to the selection and save the resulting split."""
        with self._step("pull"), no_progress_bars():
            outcome = queue.pull().apply(selection)
            outcome.save(self.folder / "decisions")
        return outcome

    def publish(self, target: str | Path) -> Publication:
        """Publish the kept rows to a Hub dataset or a folder."""
        with self._step("publish"), no_progress_bars():
            return publish(self.folder / "decisions", target)

    def _profile(self, model: str) -> SafetyProfile:
        """Load the profile of an earlier run with the same model and layers, else build it."""
        layers = self.layers or _middle_blocks(count_layers(ModelSource(model_id=model)))
        settings = seal({"model": model, "layers": layers})
        folder = self.folder / "profile"
        # The settings are written after the profile, so a profile whose build was interrupted is built again.
        if (folder / SETTINGS).exists() and read_settings(folder) == settings:
            return SafetyProfile.from_pretrained(folder)
        profile = SafetyProfile.build(model, ReferenceSet.load("builtin"), layers=layers)
        profile.save_pretrained(folder)
        write_sealed(folder / SETTINGS, settings)
        return profile

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Announce a step and record its duration."""
        self.say(name)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


def read_settings(folder: Path) -> DemoSettings:
    """Read the settings of the profile in a folder.

    Raises:
        InputError: If they are damaged.
    """
    return read_sealed(folder / SETTINGS, DemoSettings, remedy=f"remove {folder}, and run the demo again")


def _middle_blocks(blocks: int) -> list[int]:
    """Return three blocks near the middle, where models of all sizes separate harmful intent: 12, 14 and 16 of 30."""
    return sorted({blocks * share // 15 for share in (6, 7, 8)})
