"""Steps of building a profile: load and check the rows, load the model, read the states."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import Row
from larf_curate.conversation.templates import Tokenizer, template_digest
from larf_curate.conversation.truncation import Tokens
from larf_curate.data.references import ReferenceSet, load_neutral
from larf_curate.errors import ModelError, ProfileError
from larf_curate.layers.choice import check_enough_rows, middle_half
from larf_curate.models.adapters import refuse_adapter
from larf_curate.models.devices import default_batch_tokens
from larf_curate.models.hidden_states import DEFAULT_MAX_LENGTH, StateReader, is_out_of_memory
from larf_curate.models.identity import model_digest
from larf_curate.models.loading import (
    check_layers,
    commit_of,
    limit_threads,
    load_reader,
    load_reader_with_head,
    load_renderer,
)
from larf_curate.models.source import ModelSource, count_layers, load_tokenizer
from larf_curate.models.template_dates import today, writes_dates
from larf_curate.profile.checks import (
    check_disjoint,
    check_prompts,
    check_sides_differ,
    check_states_differ,
    warn_if_few,
    warn_if_not_refusals,
)
from larf_curate.profile.provenance import describe, describe_neutral
from larf_curate.profile.reference_states import read_sides, rows_by_side
from larf_curate.profile.state_cache import StateCache
from larf_curate.signals import DEFAULT_SIGNAL, SIGNALS
from larf_curate.states import Position, States

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """The checked rows of a profile, before their states are read.

    Args:
        references: Unsafe and safe conversations.
        neutral: Neutral rows.
        neutral_name: Source of the neutral rows, as given by the user.
        match_lengths: Whether long reference answers are cut to the length of their counterparts.
    """

    references: ReferenceSet
    neutral: tuple[Row, ...]
    neutral_name: str | Path | Sequence[Row]
    match_lengths: bool

    @classmethod
    def load(
        cls,
        references: ReferenceSet | str | Path,
        neutral: str | Path | Sequence[Row],
        signal: str,
        *,
        match_lengths: bool | None,
        choose_layers: bool,
    ) -> "SourceRows":
        """Load references and neutral rows and check them; see `SafetyProfile.build` for the arguments.

        Raises:
            ProfileError: If the signal does not exist.
            ReferenceSetError: If the rows do not suit the signal, or are too few to choose layers.
        """
        if signal not in SIGNALS:
            raise ProfileError(f"wanted a signal among {', '.join(SIGNALS)}, got {signal!r}")
        neutral_rows = load_neutral(neutral)
        refs = references if isinstance(references, ReferenceSet) else ReferenceSet.load(references)
        check_sides_differ(refs)
        check_disjoint(refs, neutral_rows)
        check_prompts(refs.unsafe, neutral_rows, signal, needed="prompt" in SIGNALS[signal].positions)
        warn_if_few(refs)
        if signal == DEFAULT_SIGNAL:
            warn_if_not_refusals(refs)
        if choose_layers:
            check_enough_rows(refs.unsafe, refs.safe, neutral_rows)
        match = SIGNALS[signal].full_answers is False if match_lengths is None else match_lengths
        return cls(references=refs, neutral=neutral_rows, neutral_name=neutral, match_lengths=match)


def fix_template(source: ModelSource) -> ModelSource:
    """Check the chat template of a model before its weights are loaded, and fix the dates that it writes.

    Returns:
        The source; if the template writes today's date, with the day that it writes, so that scores stay the same.

    Raises:
        ModelError: If there is no tokenizer or no usable chat template.
    """
    refuse_adapter(source.model_id, source.revision)  # whose folder often has a tokenizer, but no model
    tokenizer = load_tokenizer(source)
    template = Renderer(tokenizer, max_length=DEFAULT_MAX_LENGTH).template
    _ = template.takes_parts  # renders two turns, which an endless template never ends
    return replace(source, template_day=today(tokenizer)) if writes_dates(tokenizer) else source


def layers_to_read(source: ModelSource, layers: Sequence[int] | None, *, choose: bool) -> tuple[int, ...]:
    """Blocks whose states a profile needs while it is built.

    Args:
        source: The model.
        layers: Blocks that the user gave; None for none.
        choose: Whether some are to be chosen, for which only the middle half of the model is read.

    Raises:
        ModelError: If the model's config cannot be loaded.
        InputError: If the model does not have a given block.
    """
    count = count_layers(source)
    if layers is None:
        return tuple(map(int, middle_half(count))) if choose else tuple(range(count))
    check_layers(layers, count, source.model_id)
    return tuple(layers)


@dataclass(kw_only=True, eq=False)
class LazyModel:
    """A model that is loaded when it is first run, and once for everything.

    Args:
        source: Which model, its dtype resolved.
        layers: 0-based decoder blocks to read.
        device: A torch device.
        max_length: Longest conversation in tokens.
        head: Whether to load the head too, for gradients at the same weights. If the model's files lack it or it does
            not fit into memory, the model is loaded without it, with a warning.
    """

    source: ModelSource
    layers: tuple[int, ...]
    device: str
    max_length: int
    head: bool

    @property
    def reader(self) -> StateReader:
        """Reads states at the layers.

        Raises:
            ModelError: If the model cannot be loaded.
        """
        return self._loaded[0]

    @property
    def causal_lm(self) -> Any:  # noqa: ANN401  any model of transformers
        """The model with its head, sharing the reader's weights; None if it was loaded without.

        Raises:
            ModelError: If the model cannot be loaded.
        """
        return self._loaded[1]

    @cached_property
    def renderer(self) -> Renderer:
        """Renders rows for the model, for which its weights are not needed."""
        return load_renderer(self.source, max_length=self.max_length)

    @cached_property
    def digest(self) -> str | None:
        """Digest of everything that the model's numbers depend on; None if it is unknown, so that none are cached."""
        limit_threads()  # on which the numbers depend, before the model is loaded
        try:
            return model_digest(self.source, self.device)
        except OSError as error:
            logger.warning("states are not cached, since the model's files cannot be read: %s", error)
            return None

    @cached_property
    def _loaded(self) -> tuple[StateReader, Any]:
        options: dict[str, Any] = {"device": self.device, "max_length": self.max_length}
        reason = ""
        if self.head:
            try:
                return load_reader_with_head(self.source, self.layers, **options)
            except (ModelError, RuntimeError) as error:
                if not isinstance(error, ModelError) and not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
        reader = load_reader(self.source, self.layers, **options)
        if reason:  # only now, since a model that cannot be loaded at all raises its own error
            logger.warning("the model was loaded without its head, since %s", reason)
        return reader, None


@dataclass(kw_only=True, eq=False)
class CachedReader:
    """Reads the states of rows as a `StateReader` does, those that were read before from the cache.

    Args:
        model: The model, which is loaded for the first states that are not cached.
    """

    model: LazyModel
    cached: int = field(default=0, init=False)

    def remark(self) -> str:
        """How many rows were read from the cache, in words; empty if none were."""
        return f"{self.cached} from the cache" if self.cached else ""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.renderer().tokenizer

    def renderer(self) -> Renderer:
        """The renderer of rows for the model."""
        return self.model.renderer

    def columns(self) -> Mapping[str, str] | None:
        """Column names by role together with the input separator."""
        return self.renderer().columns

    def __call__(self, conversations: Sequence[Tokens], positions: Sequence[Position]) -> States:
        """States of every turn of conversations that are always read together; see `StateReader`."""
        cache = self._cache
        if cache is None or not conversations:
            return self.model.reader(conversations, positions)
        if (stored := cache.load(conversations, positions)) is not None:
            self.cached += len(conversations)
            return stored
        reader = self.model.reader
        states = reader(conversations, positions)
        # Otherwise memory ran out: smaller batches give other last digits.
        if reader.batch_tokens == default_batch_tokens(reader.device.type):
            cache.store(conversations, positions, states)
        return states

    @cached_property
    def _cache(self) -> StateCache | None:
        return StateCache(model=self.model.digest, layers=self.model.layers) if self.model.digest else None


def read_profile(model: LazyModel, rows: SourceRows) -> dict[str, Any]:
    """Read the states of all rows, from the cache as far as they are there.

    Args:
        model: The model.
        rows: References and neutral rows.

    Returns:
        The fields of a `SafetyProfile` that depend on model and rows, by name.

    Raises:
        ReferenceSetError: If a row cannot be scored, or both sides of the references have the same states.
    """
    reader = CachedReader(model=model)
    sides = rows_by_side(rows.references, rows.neutral, reader, match=rows.match_lengths)
    states: dict[str, States] = read_sides(reader, sides, remark=reader.remark)
    check_states_differ(states)
    return {
        "source": replace(model.source, revision=commit_of(model.source) or model.source.revision),
        "template_digest": template_digest(reader.tokenizer),
        "layers": model.layers,
        "states": states,
        "references": describe(rows.references, sides),
        "neutral": describe_neutral(rows.neutral_name, rows.neutral),
        "canary": dict(rows.references.unsafe[0]),
    }
