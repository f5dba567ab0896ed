"""The whole loop on packaged data: profile, score, select, report, review, pull, publish."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset

from larf_curate.data import load_rows
from larf_curate.data.references import ReferenceSet
from larf_curate.data.sources import Piece, Source
from larf_curate.data.tables import no_progress_bars
from larf_curate.demo.model import demo_model
from larf_curate.files import read_json, write_json
from larf_curate.models.source import ModelSource, count_layers
from larf_curate.profile import SafetyProfile
from larf_curate.publish import Publication, publish
from larf_curate.report import write_report
from larf_curate.review import Outcome, PushResult, ReviewQueue
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.explanation import explained
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import Selection, select
from larf_curate.server import EmbeddedServer
from larf_curate.version import __version__

QUEUE = "larf-demo"
TRUTH = "is_harmful"
TOP_RATIO = 0.15
EXPLAINED = 10

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Demo:
    """One run of the demo; every step can be run again and goes on from what is there.

    Args:
        folder: Where all results go.
        model: A chat model, a folder or a Hub id; SmolLM2-135M-Instruct if left out.
        layers: 0-based decoder blocks; three about the middle if left out.
        say: Is told what happens, one line at a time.
    """

    folder: Path
    model: str | None = None
    layers: list[int] | Literal["all"] | None = None
    say: Say
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
            told = {"dataset": "larf-curate demo", "rows": len(rows), "of": f"larf-curate {__version__}"}
            source = Source(pieces=(Piece(name="demo", rows=rows),), description=told)
            score_source(source, scorer, self.folder / "scored", resume=True)
        return Scored.load(self.folder / "scored")

    def select(self, scored: Scored) -> Selection:
        """Flag the highest rows, say which tokens pulled the scores of the first, and write the report."""
        profile = self.folder / "profile"
        with self._step("select"), no_progress_bars():
            selection = select(scored.rows, top_ratio=TOP_RATIO, source=scored.source_id, scored=scored.manifest)
            selection = explained(selection, SafetyProfile.from_pretrained(profile), rows=EXPLAINED)
            selection.save(self.folder / "selection")
        with self._step("report"), no_progress_bars():
            write_report(self.folder / "selection", self.folder / "report.html", profile=profile)
        return selection

    def push(self, queue: ReviewQueue, selection: Selection) -> PushResult:
        """Put the flagged rows before reviewers."""
        with self._step("push"), no_progress_bars():
            return queue.push(selection)

    def decide(self, server: EmbeddedServer, queue: ReviewQueue, selection: Selection) -> None:
        """Submit decisions by script as a reviewer would: the packaged rows say which of them are harmful."""
        with self._step("decide"):
            account = server.add_user("demo-reviewer")
            truth = dict(zip(selection.flagged["larf_row_id"], selection.flagged[TRUTH], strict=True))
            decisions = {row: "remove" if harmful else "keep" for row, harmful in truth.items()}
            queue.submit(decisions, api_key=account.api_key)

    def pull(self, queue: ReviewQueue, selection: Selection) -> Outcome:
        """Bring the decisions back and split the rows by them."""
        with self._step("pull"), no_progress_bars():
            outcome = queue.pull().apply(selection)
            outcome.save(self.folder / "decisions")
        return outcome

    def publish(self, target: str | Path) -> Publication:
        """Publish what people kept."""
        with self._step("publish"), no_progress_bars():
            return publish(self.folder / "decisions", target)

    def _profile(self, model: str) -> SafetyProfile:
        layers = self.layers or _middle(count_layers(ModelSource(model_id=model)))
        wanted = {"model": model, "layers": layers}
        folder = self.folder / "profile"
        if (folder / "demo.json").exists() and read_json(folder / "demo.json") == wanted:
            return SafetyProfile.from_pretrained(folder)
        profile = SafetyProfile.build(model, ReferenceSet.load("builtin"), layers=layers)
        profile.save_pretrained(folder)
        write_json(folder / "demo.json", wanted)
        return profile

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        self.say(name)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


def _middle(blocks: int) -> list[int]:
    """Three blocks about the middle, where models of all sizes tell intentions apart: 12, 14 and 16 of 30."""
    return sorted({blocks * share // 15 for share in (6, 7, 8)})
