"""People decide: flagged rows to an Argilla server, their decisions back, and the dataset that follows from them.

Public names load on first use: the embedded server below this package needs neither Argilla's client nor datasets.
"""

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "Conflicts": "next",
    "Decision": "merge",
    "Decisions": "decisions",
    "Outcome": "outcome",
    "Proposals": "next",
    "PushResult": "push",
    "QueueStatus": "status",
    "Reranked": "rerank",
    "ReviewQueue": "queue",
}

__all__ = [
    "Conflicts",
    "Decision",
    "Decisions",
    "Outcome",
    "Proposals",
    "PushResult",
    "QueueStatus",
    "Reranked",
    "ReviewQueue",
]

if TYPE_CHECKING:
    from larf_curate.review.decisions import Decisions
    from larf_curate.review.merge import Decision
    from larf_curate.review.next import Conflicts, Proposals
    from larf_curate.review.outcome import Outcome
    from larf_curate.review.push import PushResult
    from larf_curate.review.queue import ReviewQueue
    from larf_curate.review.rerank import Reranked
    from larf_curate.review.status import QueueStatus


def __getattr__(name: str) -> object:
    """Load a public name from its module at first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
