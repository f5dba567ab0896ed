"""LarfScorer: the callable that ``datasets.map`` takes, rows in, safety columns out."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from datasets.formatting.formatting import LazyBatch, LazyRow
from numpy.typing import NDArray

from larf_curate.conversation.chat_template import Rendered, Renderer, Status
from larf_curate.conversation.schemas import Schema, check_columns, schema_for
from larf_curate.errors import InputError, ProfileError
from larf_curate.files import cache_home, read_json, write_json
from larf_curate.models.hidden_states import DEFAULT_BATCH_TOKENS, StateReader
from larf_curate.profile import SafetyProfile, cache_profile
from larf_curate.profile.source_rows import reference_rows
from larf_curate.scoring.exemplars import ExemplarIndex, Neighbor, cache_exemplars
from larf_curate.scoring.text_baselines import TextBaselines
from larf_curate.signals import AXES, DEFAULT_SIGNAL, SIGNALS, Signal
from larf_curate.signals.baselines import BASELINES
from larf_curate.states import POSITIONS, Position, States, Vectors

ALGORITHM = 3
"""Part of the cache key: raised whenever the same settings give other numbers."""
HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScore:
    """What one row gets.

    Args:
        status: ``ok`` or ``truncated``; for ``empty``, ``malformed`` and ``non_finite`` the rest is None.
        score: Mean of ``layer_scores``; high = unsafe.
        layer_scores: The profile's signal at each layer, shape (layers,).
        signals: Every signal asked for, its mean over the layers.
        neighbors: Nearest exemplars.
        state: State at the profile's first layer, shape (d,), float16.
    """

    status: Status
    score: np.float32 | None = None
    layer_scores: Vectors | None = None
    signals: dict[str, np.float32] | None = None
    neighbors: list[Neighbor] | None = None
    state: np.ndarray[Any, np.dtype[np.float16]] | None = None


class LarfScorer:
    """Scores rows of a dataset: ``ds.map(LarfScorer(profile), batched=True)``.

    The model loads at the first call, once a process. Settings that change a result are part of the cache key of
    ``map``; the device, the batch size in tokens and the place of the model are not. Scores of a row with several
    assistant turns are those of its highest turn.

    Args:
        profile: What to score with.
        exemplars: An index whose nearest exemplars are written into ``larf_neighbors``.
        neighbors: How many of them.
        signals: Names of the signals written into ``larf_signals``; if left out, the two axes of the default signal,
            or the profile's own if it is another. The baselines ``length`` and ``tfidf`` can be asked for too, where
            the texts of the profile's references are at hand.
        keep_states: Whether to write ``larf_state``, the state at the profile's first layer.
        columns: Column names by role, if they are not to be found, as in ``{"user": "q", "assistant": "a"}``.
        model: Where the model lies, if not where it lay when the profile was built.
        device: A torch device; by default the GPU of the process's rank, else the first accelerator, else the CPU.
        batch_tokens: Most tokens of one forward pass, padding included; by default what suits the device.

    Raises:
        ProfileError: If a signal does not exist, or a baseline's texts are not at hand.
        InputError: If the exemplars are from another layer or model width, or a number is out of range.
    """

    def __init__(
        self,
        profile: SafetyProfile,
        *,
        exemplars: ExemplarIndex | None = None,
        neighbors: int = 3,
        signals: Sequence[str] | None = None,
        keep_states: bool = False,
        columns: Mapping[str, str] | None = None,
        model: str | None = None,
        device: str | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> None:
        self.profile = profile
        self.exemplars = exemplars
        self.neighbors = neighbors
        self.signals = tuple(signals or default_signals(profile.signal))
        self.keep_states = keep_states
        self.columns = dict(columns) if columns else None
        self._runtime: dict[str, Any] = {"model": model, "device": device, "batch_tokens": batch_tokens}
        self._loaded: tuple[StateReader, Renderer] | None = None
        self._check()
        cache_profile(profile)
        if exemplars is not None:
            cache_exemplars(exemplars)
        trusted = {"trust_remote_code": profile.source.trust_remote_code}
        write_json(_runtime_file(self.key), self._runtime | trusted)

    def __call__(self, batch: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Score one batch, or one row.

        Args:
            batch: Lists by column, or one row's values by column.
            rank: Number of the worker process, as ``map(with_rank=True)`` gives it; picks the GPU.

        Returns:
            The columns of `features`, as lists or as one row's values.

        Raises:
            ConversationError: If the columns hold no known conversation format.
            ProfileMismatchError: If the model is not the profile's.
        """
        if not isinstance(batch, Mapping):
            got = type(batch).__name__
            raise InputError(f"wanted rows as Python values, got {got}: use ds.with_format(None), and no input_columns")
        schema = self._schema(batch)
        if _is_batch(batch, schema.columns):
            return self.columns_of(self._rendered(_rows(batch), schema, rank), rank)
        row = {name: _plain(value) for name, value in batch.items()}
        columns = self.columns_of(self._rendered([row], schema, rank), rank)
        return {name: column[0] for name, column in columns.items()}

    def render(self, batch: Mapping[str, Any], rank: int | None = None) -> list[Rendered]:
        """Tokenize a batch: the half of a call that needs no model and may run beside the other.

        Args:
            batch: Lists by column.
            rank: Number of the worker process.

        Raises:
            ConversationError: If the columns hold no known conversation format.
            ProfileMismatchError: If the model is not the profile's.
        """
        return self._rendered(_rows(batch), self._schema(batch), rank)

    def columns_of(self, rendered: Sequence[Rendered], rank: int | None = None) -> dict[str, list[Any]]:
        """Score what `render` gave: the other half of a call; returns the columns of `features`."""
        scores = self._scored(rendered, rank)
        columns: dict[str, list[Any]] = {
            "larf_score": [s.score for s in scores],
            "larf_layer_scores": [s.layer_scores for s in scores],
            "larf_signals": [s.signals for s in scores],
            "larf_status": [s.status for s in scores],
            "larf_neighbors": [s.neighbors and [_cell(n) for n in s.neighbors] for s in scores],
            "larf_state": [s.state for s in scores],
        }
        types = self.features()
        return {name: _typed(columns[name], types[name]) for name in self._written}

    def score(self, rows: Sequence[Mapping[str, Any] | None], rank: int | None = None) -> list[RowScore]:
        """Score rows given as dicts; see `__call__` for the errors."""
        return self._scored(self._load(rank)[1](rows), rank)

    def _schema(self, batch: Mapping[str, Any]) -> Schema:
        """The format of a batch's rows, found once."""
        if self.columns:
            check_columns(batch, self.columns)
        return schema_for(batch, self.columns)

    def _rendered(self, rows: Sequence[dict[str, Any]], schema: Schema, rank: int | None) -> list[Rendered]:
        return self._load(rank)[1](rows, schema)

    def _scored(self, rendered: Sequence[Rendered], rank: int | None) -> list[RowScore]:
        reader, _ = self._load(rank)
        scores = self._scores(reader, [item for item in rendered if item.tokens is not None])
        return [RowScore(status=item.status) if item.tokens is None else next(scores) for item in rendered]

    def features(self, existing: Features | None = None) -> Features:
        """Types of the columns a scored dataset has, for ``map(features=…)``.

        Args:
            existing: Features of the dataset to be scored.
        """
        layers, width = len(self.profile.layers), self.profile.width
        neighbor = {"id": Value("string"), "label": Value("string"), "cosine": Value("float32")}
        added = {
            "larf_score": Value("float32"),
            "larf_layer_scores": List(Value("float32"), length=layers),
            "larf_signals": {name: Value("float32") for name in self.signals},
            "larf_status": Value("string"),
            "larf_neighbors": List(neighbor),
            "larf_state": List(Value("float16"), length=width),
        }
        return Features({**(existing or {}), **{name: added[name] for name in self._written}})

    @property
    def _written(self) -> list[str]:
        names = ["larf_score", "larf_layer_scores", "larf_signals", "larf_status"]
        names += ["larf_neighbors"] if self.exemplars is not None else []
        return names + (["larf_state"] if self.keep_states else [])

    def _scores(self, reader: StateReader, rendered: Sequence[Rendered]) -> Iterator[RowScore]:
        """Scores of rows that have tokens, in their order."""
        tokens = [item.tokens for item in rendered if item.tokens is not None]
        if not tokens:
            return
        states = self.profile.fill_prompts(reader(tokens, self._positions), tokens)
        row_of_turn = np.repeat(np.arange(len(tokens)), [len(item.turns) for item in tokens])
        finite = _blank_non_finite(states)
        by_layer = {name: signal(states).astype(np.float32) for name, signal in self._fitted.items()}
        means = {name: values.mean(axis=1) for name, values in by_layer.items()} | self._text_baselines(rendered)
        ranking = means[self.profile.signal]
        highest = _highest(ranking, row_of_turn)
        firsts = states["last"][highest, 0]
        near = [None] * len(tokens) if self.exemplars is None else self.exemplars.search(firsts, self.neighbors)
        broken = set(row_of_turn[~finite])
        for row, (item, turn) in enumerate(zip(rendered, highest, strict=True)):
            yield (
                RowScore(status="non_finite")
                if row in broken
                else RowScore(
                    status=item.status,
                    score=ranking[turn],
                    layer_scores=by_layer[self.profile.signal][turn],
                    signals={name: means[name][turn] for name in self.signals},
                    neighbors=near[row],
                    state=firsts[row].clip(-HALF_MAX, HALF_MAX).astype(np.float16),
                )
            )

    @cached_property
    def _fitted(self) -> dict[str, Signal]:
        return {name: self.profile.fit(name) for name in {self.profile.signal, *self.signals} - set(BASELINES)}

    @cached_property
    def _text_baselines(self) -> TextBaselines:
        return TextBaselines.of(self._baselines, self.profile, self._load(None)[0])

    @property
    def _baselines(self) -> list[str]:
        return [name for name in self.signals if name in BASELINES]

    @property
    def _positions(self) -> list[Position]:
        needed = {"last"}.union(*(SIGNALS[name].positions for name in self._fitted))
        return [position for position in POSITIONS if position in needed]

    def _load(self, rank: int | None) -> tuple[StateReader, Renderer]:
        """The model, loaded and checked once a process, and what renders rows for it."""
        if self._loaded is None:
            reader = self.profile.reader(**self._runtime, rank=rank)
            self._loaded = (
                reader,
                Renderer(reader.tokenizer, reader.max_length, self.columns, keep_texts=bool(self._baselines)),
            )
        return self._loaded

    def _check(self) -> None:
        for name in self.signals:
            if name not in {**SIGNALS, **BASELINES}:
                raise ProfileError(f"wanted signals among {', '.join([*SIGNALS, *BASELINES])}, got {name!r}")
        if self._baselines:
            reference_rows(self.profile)
        if self.neighbors < 1:
            raise InputError(f"wanted neighbors of at least 1, got {self.neighbors}")
        layer, width = self.profile.layers[0], self.profile.width
        if self.exemplars is not None and (self.exemplars.layer, self.exemplars.states.shape[1]) != (layer, width):
            raise InputError(
                f"wanted exemplars of the profile's first layer, {layer}, and width {width}, got layer "
                f"{self.exemplars.layer} and width {self.exemplars.states.shape[1]}: build the index from this profile"
            )

    @property
    def key(self) -> str:
        """Every setting that can change a result, as canonical JSON: the whole pickled content of a scorer."""
        settings = {
            "algorithm": ALGORITHM,
            "profile": self.profile.digest,
            "exemplars": self.exemplars and self.exemplars.digest,
            "neighbors": self.neighbors,
            "signals": self.signals,
            "keep_states": self.keep_states,
            "columns": self.columns,
        }
        return json.dumps(settings, sort_keys=True)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _rebuild, (self.key,)


def _rebuild(key: str) -> LarfScorer:
    """Make a scorer again in another process, from its key and the cache its maker filled."""
    settings = json.loads(key)
    exemplars = settings["exemplars"]
    runtime = read_json(_runtime_file(key))
    folder = cache_home() / "profiles" / settings["profile"]
    return LarfScorer(
        SafetyProfile.from_pretrained(folder, trust_remote_code=runtime.pop("trust_remote_code")),
        exemplars=exemplars and ExemplarIndex.load(cache_home() / "exemplars" / exemplars),
        **{name: settings[name] for name in ("neighbors", "signals", "keep_states", "columns")},
        **runtime,
    )


def default_signals(signal: str) -> tuple[str, ...]:
    """What ``larf_signals`` shows beside a score: what the default signal is made of, any other signal itself."""
    return AXES if signal == DEFAULT_SIGNAL else (signal,)


def _runtime_file(key: str) -> Path:
    """Where the settings that change no result are kept, for worker processes alone."""
    return cache_home() / "scorers" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _cell(neighbor: Neighbor) -> dict[str, Any]:
    return {"id": neighbor.id, "label": neighbor.label, "cosine": np.float32(neighbor.cosine)}


def _highest(ranking: Vectors, row_of_turn: NDArray[np.intp]) -> NDArray[np.intp]:
    """Number of the highest turn of every row; the turns of a row lie together."""
    order = np.lexsort((ranking, row_of_turn))
    return order[np.cumsum(np.bincount(row_of_turn)) - 1]


def _blank_non_finite(states: States) -> NDArray[np.bool_]:
    """Which turns are finite everywhere; the others are set to zero, so that no formula warns."""
    finite = np.logical_and.reduce([np.isfinite(values).all(axis=(1, 2)) for values in states.values()])
    for position, values in states.items():
        if position != "length":
            values[~finite] = 0
    return np.asarray(finite)


def _is_batch(batch: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether the values are columns of several rows; `datasets` says so, plain dicts are looked at."""
    if isinstance(batch, LazyBatch | LazyRow):
        return isinstance(batch, LazyBatch)
    values = [_plain(value) for value in batch.values()]
    lengths = {len(value) if isinstance(value, list) else None for value in values}
    return len(lengths) == 1 and None not in lengths and not any(_is_chat(batch[name]) for name in columns)


def _is_chat(value: Any) -> bool:  # noqa: ANN401  a cell or a column
    """Whether this is one conversation; legacy conversations are dicts of lists, so a column of them has dicts too."""
    first = value[0] if len(value) else None
    return isinstance(first, Mapping) and any(isinstance(first.get(name), str) for name in ("role", "from"))


def _plain(value: Any) -> Any:  # noqa: ANN401  a cell or a column
    return value.tolist() if isinstance(value, np.ndarray) else value


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    values = [_plain(value) for value in batch.values()]
    return [dict(zip(batch, cells, strict=True)) for cells in zip(*values, strict=True)]


class _TypedNulls(list[None]):
    """A column without values that keeps its type: `map` fixes the type of every column at the first batch."""

    def __init__(self, length: int, type: pa.DataType) -> None:
        super().__init__([None] * length)
        self._type = type

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return pa.nulls(len(self), type or self._type)


def _typed(column: list[Any], feature: object) -> list[Any]:
    if any(value is not None for value in column):
        return column
    return _TypedNulls(len(column), Features({"column": feature}).arrow_schema.field("column").type)
