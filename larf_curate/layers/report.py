"""`LayerReport`: the safety-sensitive blocks of a model with intervals, and the agreement of two methods."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from larf_curate.errors import InputError
from larf_curate.files import read_json
from larf_curate.layers.method import Method
from larf_curate.records import DIGEST, STRICT, check_seal, parse_record, write_sealed
from larf_curate.remote import local_copy
from larf_curate.stats import rank_correlation

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
REPORT_FILE = "layers.json"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of two rankings of one model's blocks; blocks that are broken in either do not count.

    Args:
        spearman: Rank correlation over all blocks, in [-1, 1]; blocks that do not matter add noise to it.
        spearman_clear: Rank correlation over the blocks whose interval in the first report excludes zero; NaN if there
            are fewer than two.
        clear: Number of those blocks.
        top3: Number of blocks that are among the first three of both.
        top5: Number of blocks that are among the first five of both.
    """

    spearman: float
    spearman_clear: float
    clear: int
    top3: int
    top5: int


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """Results of one method for every decoder block of a model.

    A layer is a 0-based decoder block. The LARF authors' sweep counts blocks in the same way; their score reads
    ``hidden_states[i]``, which is the output of block ``i - 1``: the layer they call 10 in scoring is block 9 here.

    Args:
        method: ``gradient``, ``forward``, ``sweep`` or ``separation``.
        model: Name of the model.
        layers: Recommended blocks, the most sensitive first: not broken, and with an interval above zero. Empty if no
            block differs from chance.
        scores: One per block; higher if refusals (for ``separation``: states) react more. ``sweep``: share of prompts
            refused at the largest scale minus that at the smallest. ``forward``: the same for prompts whose log-odds
            lean to a refusal. ``gradient``: derivative of the log-odds with respect to the scale. ``separation``:
            Fisher ratio.
        low: Lower bounds of the scores' 95 % bootstrap intervals over prompts (``separation``: over references).
        high: Upper bounds.
        ranking: All blocks that are not known to be broken, the most sensitive first.
        broken: Blocks that destroy harmless answers when scaled.
        neutral_loss: Increase of the loss on harmless answers, in nats per token, at the worse of the two outermost
            scales, at most 100; None for blocks that were not checked because they would not be recommended.
        alphas: Scales of the grid; empty if only the derivative was computed or nothing was scaled.
        curves: Share of prompts that are refused, or lean to a refusal, for every block and scale.
        baseline: That share with nothing scaled; None if there is no grid.
        measures: Further columns by name, one value per block.
        prompts: Number of prompts, or of reference pairs for ``separation``.
        refused: Number of prompts refused with nothing scaled; None for ``separation``.
        scaled: Names of the weights that are scaled in a block.
        seconds: Run time, loading included.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    method: Method
    model: str
    layers: tuple[int, ...]
    scores: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    ranking: tuple[int, ...]
    broken: tuple[int, ...]
    neutral_loss: tuple[float | None, ...]
    alphas: tuple[float, ...] = ()
    curves: tuple[tuple[float, ...], ...] = ()
    baseline: float | None = None
    measures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    prompts: int
    refused: int | None = None
    scaled: tuple[str, ...]
    seconds: float

    @property
    def advice(self) -> str:
        """What to do if no layer is recommended; empty if one is."""
        if self.layers:
            return ""
        if broken := [block for block in self.broken if self.low[block] > 0]:
            return (
                f"the blocks of {self.model} that stand out from chance ({', '.join(map(str, broken))}) break it when "
                "scaled, so none is recommended: try scales closer to 1, or method='separation'"
            )
        other = "references" if self.method == "separation" else "prompts, or method='separation'"
        return (
            f"no block of {self.model} stands out from chance with {self.prompts} prompts, so none is recommended: "
            f"try more {other}"
        )

    def to_pandas(self) -> "pd.DataFrame":
        """Table with one row per block, by rank, broken blocks last; the index is the block."""
        import pandas as pd  # slow to import, and not needed for anything else

        blocks = range(len(self.scores))
        columns: dict[str, Sequence[Any]] = {
            "score": self.scores,
            "low": self.low,
            "high": self.high,
            "recommended": [block in self.layers for block in blocks],
            "broken": [block in self.broken for block in blocks],
            "neutral_loss": self.neutral_loss,
            # Index in the authors' scoring code, where 0 is the embeddings' output.
            "larf_hidden_state": [block + 1 for block in blocks],
        }
        curves = {f"alpha_{alpha:g}": [curve[i] for curve in self.curves] for i, alpha in enumerate(self.alphas)}
        table = pd.DataFrame({**columns, **self.measures, **curves}, index=pd.Index(blocks, name="block"))
        return table.loc[[*self.ranking, *self.broken]]

    def agreement(self, other: "LayerReport") -> Agreement:
        """Compare with another method's ranking of the same model.

        Args:
            other: The other report. The intervals of this one decide which blocks are clear, so call the method on the
                more trusted report.

        Raises:
            InputError: If the reports have different numbers of blocks.
        """
        if len(self.scores) != len(other.scores):
            raise InputError(
                f"wanted reports of one model, got {len(self.scores)} and {len(other.scores)} blocks: "
                "compare reports of the same model"
            )
        sound = [block for block in self.ranking if block in other.ranking]
        clear = [block for block in sound if self.low[block] > 0 or self.high[block] < 0]
        firsts = [[block for block in report.ranking if block in sound] for report in (self, other)]
        return Agreement(
            spearman=_correlation(self, other, sound),
            spearman_clear=_correlation(self, other, clear),
            clear=len(clear),
            top3=len(set(firsts[0][:3]) & set(firsts[1][:3])),
            top5=len(set(firsts[0][:5]) & set(firsts[1][:5])),
        )

    def plot(self, path: str | Path) -> Path:
        """Plot scores with their intervals, and curves over the scales, as PNG, SVG or PDF by the file's suffix.

        Returns:
            The path.

        Raises:
            InputError: If the suffix is none of these.
        """
        from larf_curate.layers.plot import BlockScores, draw  # matplotlib is slow to import

        drawn = {field.name: getattr(self, field.name) for field in fields(BlockScores)}
        return draw(BlockScores(**drawn), Path(path))

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON: to a file ending in ``.json``, or as ``layers.json`` in a folder."""
        file = report_file(path)
        write_sealed(file, {"kind": "layers", "format": FORMAT, **asdict(self)})
        return file

    @classmethod
    def load(cls, path: str | Path) -> "LayerReport":
        """Read a report that `save` wrote.

        Raises:
            InputError: If the file is missing, damaged, or not a layer report of this format.
        """
        path = local_copy(path)
        value = read_json(report_file(path))
        remedy = "make it again with larf-curate layers"
        if not isinstance(value, dict) or value.get("kind") != "layers" or value.get("format") != FORMAT:
            raise InputError(f"{path} is not a layer report of format {FORMAT}: {remedy}")
        fields_only = {name: item for name, item in value.items() if name not in ("kind", "format", DIGEST)}
        report = parse_record(fields_only, cls, path=path, remedy=remedy)
        check_seal(value, path=path, remedy=remedy)
        return report


def report_file(path: str | Path) -> Path:
    """JSON file of a path: the path itself if it ends in ``.json``, else ``layers.json`` in that folder."""
    return Path(path) if Path(path).suffix == ".json" else Path(path) / REPORT_FILE


def _correlation(one: LayerReport, other: LayerReport, blocks: Sequence[int]) -> float:
    """Rank correlation of two reports' scores over some blocks; NaN where it is undefined."""
    found = rank_correlation([one.scores[block] for block in blocks], [other.scores[block] for block in blocks])
    return math.nan if found is None else found
