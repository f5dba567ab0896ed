"""Human review: flagged rows are pushed to an Argilla server, decisions are pulled and applied to the dataset.

Public names are imported on first use: the command line reads `larf_curate.review.strategies` for its options, and help
texts should appear without waiting for Argilla's client and datasets to load.
"""

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "Assignment": "people.assignment",
    "Conflicts": "learning.proposals",
    "Decision": "decisions.merge",
    "Decisions": "decisions.outcome",
    "Exported": "files.export",
    "HarmPush": "budget.rows",
    "Left": "sampling.left",
    "Outcome": "decisions.outcome",
    "PeopleLinks": "people.assignment",
    "Proposals": "learning.proposals",
    "PushResult": "records.push",
    "QueueStatus": "decisions.status",
    "QueueSummary": "decisions.status",
    "Reranked": "learning.rerank",
    "ReviewQueue": "queue",
    "SentConflicts": "people.third_person",
    "TaughtProfile": "learning.teaching",
    "add_decisions": "learning.teaching",
    "export_review": "files.export",
    "import_decisions": "files.imports",
    "write_review_page": "files.page",
}

__all__ = [
    "Assignment",
    "Conflicts",
    "Decision",
    "Decisions",
    "Exported",
    "HarmPush",
    "Left",
    "Outcome",
    "PeopleLinks",
    "Proposals",
    "PushResult",
    "QueueStatus",
    "QueueSummary",
    "Reranked",
    "ReviewQueue",
    "SentConflicts",
    "TaughtProfile",
    "add_decisions",
    "export_review",
    "import_decisions",
    "write_review_page",
]

if TYPE_CHECKING:
    from larf_curate.review.budget.rows import HarmPush
    from larf_curate.review.decisions.merge import Decision
    from larf_curate.review.decisions.outcome import Decisions, Outcome
    from larf_curate.review.decisions.status import QueueStatus, QueueSummary
    from larf_curate.review.files.export import Exported, export_review
    from larf_curate.review.files.imports import import_decisions
    from larf_curate.review.files.page import write_review_page
    from larf_curate.review.learning.proposals import Conflicts, Proposals
    from larf_curate.review.learning.rerank import Reranked
    from larf_curate.review.learning.teaching import TaughtProfile, add_decisions
    from larf_curate.review.people.assignment import Assignment, PeopleLinks
    from larf_curate.review.people.third_person import SentConflicts
    from larf_curate.review.queue import ReviewQueue
    from larf_curate.review.records.push import PushResult
    from larf_curate.review.sampling.left import Left


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
