"""Steps of building a profile: load and check the rows, load the model, read the states."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import Row
from larf_curate.conversation.templates import template_digest
from larf_curate.data.references import ReferenceSet, load_neutral
from larf_curate.errors import ModelError, ProfileError
from larf_curate.layers.choice import check_enough_rows
from larf_curate.models.adapters import refuse_adapter
from larf_curate.models.hidden_states import DEFAULT_MAX_LENGTH, StateReader, is_out_of_memory
from larf_curate.models.loading import load_reader, load_reader_with_head
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
from larf_curate.signals import DEFAULT_SIGNAL, SIGNALS
from larf_curate.states import States

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


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model on its device.

    Args:
        source: Which model, its dtype resolved.
        reader: Reads states at the requested layers.
        causal_lm: The model with its head, sharing the reader's weights; None if it was loaded without.
    """

    source: ModelSource
    reader: StateReader
    causal_lm: Any = None

    @classmethod
    def load(
        cls, source: ModelSource, layers: Sequence[int] | None, *, device: str, max_length: int, head: bool
    ) -> "LoadedModel":
        """Load a model once.

        Args:
            source: The model, its dtype resolved.
            layers: 0-based decoder blocks to read; None for all.
            device: A torch device.
            max_length: Longest conversation in tokens.
            head: Whether to load the head too, for gradients at the same weights. If the model's files lack it or it
                does not fit into memory, the model is loaded without it, with a warning.

        Raises:
            ModelError: If the model cannot be loaded, or lacks a layer.
        """
        reason = ""
        if head:
            try:
                reader, causal_lm = load_reader_with_head(source, device=device, max_length=max_length)
                return cls(source=source, reader=reader, causal_lm=causal_lm)
            except (ModelError, RuntimeError) as error:
                if not isinstance(error, ModelError) and not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
        chosen = tuple(range(count_layers(source)) if layers is None else layers)
        reader = load_reader(source, chosen, device=device, max_length=max_length)
        if reason:  # only now, since a model that cannot be loaded at all raises its own error
            logger.warning("the model was loaded without its head, since %s", reason)
        return cls(source=source, reader=reader)


def read_profile(model: LoadedModel, rows: SourceRows) -> dict[str, Any]:
    """Read the states of all rows.

    Args:
        model: The model.
        rows: References and neutral rows.

    Returns:
        The fields of a `SafetyProfile` that depend on model and rows, by name.

    Raises:
        ReferenceSetError: If a row cannot be scored, or both sides of the references have the same states.
    """
    reader = model.reader
    sides = rows_by_side(rows.references, rows.neutral, reader, match=rows.match_lengths)
    states: dict[str, States] = read_sides(reader, sides)
    check_states_differ(states)
    return {
        "source": replace(model.source, revision=reader.revision or model.source.revision),
        "template_digest": template_digest(reader.tokenizer),
        "layers": reader.layers,
        "states": states,
        "references": describe(rows.references, sides),
        "neutral": describe_neutral(rows.neutral_name, rows.neutral),
        "canary": dict(rows.references.unsafe[0]),
    }
