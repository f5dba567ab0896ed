"""LarfScorer: a callable for ``datasets.Dataset.map`` that adds safety scores to rows."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from datasets.formatting.formatting import LazyBatch, LazyRow, PythonFormatter
from multiprocess.reduction import ForkingPickler as DatasetsForkingPickler
from numpy.typing import NDArray

from larf_curate.conversation.chat_template import Rendered, Renderer, Status
from larf_curate.conversation.schemas import Schema, check_columns, schema_for, with_separator
from larf_curate.data.tables import is_media, media_undecoded
from larf_curate.errors import InputError, ProfileError
from larf_curate.files import cache_home
from larf_curate.models.devices import batch_flop, resolve_device
from larf_curate.models.hidden_states import DEFAULT_BATCH_TOKENS, StateReader
from larf_curate.profile import SIDES, SafetyProfile, cache_profile
from larf_curate.profile.rendering import profile_renderer
from larf_curate.profile.source_rows import reference_rows
from larf_curate.scoring.earlier_columns import report_earlier_columns
from larf_curate.scoring.exemplars import ExemplarIndex, Neighbor, cache_exemplars
from larf_curate.scoring.search import APPROXIMATE, is_exact
from larf_curate.scoring.text_baselines import TextBaselines
from larf_curate.signals import SIGNALS, Signal
from larf_curate.signals.baselines import BASELINES
from larf_curate.states import POSITIONS, Position, States, Vectors

ALGORITHM = 7
"""Version of the computation, part of the cache key; raised whenever the same settings give other results."""
Runtime: TypeAlias = dict[str, Any]
"""Settings that do not change results: model path, device and batch size."""
HALF_MAX = float(np.finfo(np.float16).max)
"""Largest number in a stored state; larger ones would become infinite in float16."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScore:
    """Scores of one row.

    Args:
        status: ``ok`` or ``truncated``; with ``empty``, ``malformed``, ``unsupported`` or ``non_finite``, all other
            values are None.
        score: Mean of ``layer_scores``; higher means closer to unsafe.
        layer_scores: The profile's signal at each layer, shape (layers,), float32.
        signals: Mean over the layers of each requested signal, by name.
        neighbors: Nearest exemplars, nearest first; None without an exemplar index.
        state: State at the profile's first layer, shape (d,), float16.
        turn: Which of several scored answers has this score, such as "5/7"; None if there is one.
    """

    status: Status
    score: np.float32 | None = None
    layer_scores: Vectors | None = None
    signals: dict[str, np.float32] | None = None
    neighbors: list[Neighbor] | None = None
    state: np.ndarray[Any, np.dtype[np.float16]] | None = None
    turn: str | None = None


class LarfScorer:
    """Scores rows of a dataset: ``ds.map(LarfScorer(profile), batched=True)``.

    The model is loaded lazily, once per process. Settings that change a result are part of the cache key of ``map``;
    device, batch size and model path are not. Worker processes get these too, but a plain ``pickle`` has neither them
    nor the permission to run code of the model's repository. A row with several assistant turns gets the scores of its
    highest-scoring turn.

    Args:
        profile: The profile to score with.
        exemplars: An index whose nearest exemplars are written to ``larf_neighbors``.
        neighbors: Number of nearest exemplars per row.
        signals: Names of the signals written to ``larf_signals``; default: the axes of the default signal if the
            profile uses it, else the profile's signal. The baselines ``length`` and ``tfidf`` are available too if the
            texts of the profile's references are.
        keep_states: Whether to write ``larf_state``, the state at the profile's first layer.
        columns: Column names by role, as in ``{"user": "q", "assistant": "a"}``; default: inferred from the rows.
        model: Model path, if the model has moved since the profile was built.
        device: A torch device; default: the GPU of the process's rank, else the first available accelerator, else the
            CPU.
        batch_tokens: Maximum number of tokens per forward pass, padding included; default: chosen by device.

    Raises:
        ProfileError: If a signal does not exist, or the texts for a baseline are not available.
        InputError: If the exemplars are from another layer or have another width, or a number is out of range.
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
        self.exemplars = exemplars and replace(exemplars, typical=_calibration_states(profile))
        self.neighbors = neighbors
        self.signals = tuple(signals or profile.axes)
        self.keep_states = keep_states
        self.columns = with_separator(columns, profile.source.input_separator)
        self._runtime: Runtime = {"model": model, "device": device, "batch_tokens": batch_tokens}
        self._loaded: tuple[StateReader, Renderer] | None = None
        self._reported = False
        self._check()
        # A pickled scorer has no states (see `__reduce__`): another process loads them from the cache.
        cache_profile(profile)
        if self.exemplars is not None:
            cache_exemplars(self.exemplars)

    def __call__(self, batch: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Score a batch or a single row.

        Args:
            batch: Lists by column, or the values of one row by column.
            rank: Rank of the worker process, as passed by ``map(with_rank=True)``; selects the GPU.

        Returns:
            The new columns of `features`, as lists or as the values of one row.

        Raises:
            InputError: If the rows are not Python values, as with a dataset format or ``input_columns``.
            ConversationError: If the columns have no recognised conversation format.
            ModelError: If the model cannot be loaded.
            ProfileMismatchError: If the model is not the one of the profile.
        """
        if not isinstance(batch, Mapping):
            got = type(batch).__name__
            raise InputError(f"wanted rows as Python values, got {got}: use ds.with_format(None) and no input_columns")
        values = _without_media(batch) if isinstance(batch, LazyBatch | LazyRow) else batch
        if not self._reported:
            report_earlier_columns(values, self._column_names, outdated="not updated (remove it)")
            self._reported = True
        schema = self._schema(values)
        if _is_batch(batch, values, schema.columns):
            return self.columns_of(self._render_rows(_to_rows(values), schema, rank), rank)
        row = {name: _to_python(value) for name, value in values.items()}
        columns = self.columns_of(self._render_rows([row], schema, rank), rank)
        values = {name: column[0] for name, column in columns.items()}
        # A single None has no type: `map` fits shards together only if it finds a dict in each of them.
        return values | {"larf_signals": values["larf_signals"] or dict.fromkeys(self.signals)}

    def render(self, batch: Mapping[str, Any], rank: int | None = None) -> list[Rendered]:
        """Tokenize a batch: the first half of a call, which runs no model and may run in parallel to the other half.

        Args:
            batch: Lists by column.
            rank: Rank of the worker process; selects the GPU.

        Returns:
            One result per row, for `columns_of`.

        Raises:
            ConversationError: If the columns have no recognised conversation format.
            ModelError: If the model, which is loaded with its tokenizer, cannot be loaded.
            ProfileMismatchError: If the model is not the one of the profile.
        """
        return self._render_rows(_to_rows(batch), self._schema(batch), rank)

    def columns_of(
        self, rendered: Sequence[Rendered], rank: int | None = None, on_read: Callable[[int], object] | None = None
    ) -> dict[str, list[Any]]:
        """Score tokenized rows: the second half of a call.

        Args:
            rendered: The result of `render`.
            rank: Rank of the worker process; selects the GPU.
            on_read: Called now and then with a number of rows that were scored; see `StateReader`.

        Returns:
            The new columns of `features`.
        """
        scores = self._score_rendered(rendered, rank, on_read)
        columns: dict[str, list[Any]] = {
            "larf_score": [s.score for s in scores],
            "larf_layer_scores": [s.layer_scores for s in scores],
            "larf_signals": [s.signals for s in scores],
            "larf_status": [s.status for s in scores],
            "larf_turn": [s.turn for s in scores],
            "larf_neighbors": [s.neighbors and [_neighbor_cell(n) for n in s.neighbors] for s in scores],
            "larf_state": [s.state for s in scores],
        }
        types = self.features()
        return {name: _typed(columns[name], types[name]) for name in self._column_names}

    def batch_rows(self, tokens: float, rank: int | None = None) -> int:
        """Number of rows whose scoring takes the device some seconds, at least one.

        Args:
            tokens: Average number of tokens of a row.
            rank: Rank of the worker process; selects the GPU.
        """
        # Two operations per weight, of which a block of width d has about 12 d^2 (Kaplan et al., arXiv 2001.08361).
        blocks = max(self.profile.layers) + 1
        flop = 24 * blocks * self.profile.width**2 * min(tokens, self.profile.max_length)
        return max(1, int(batch_flop(resolve_device(self._runtime["device"], rank)) / flop))

    def score(self, rows: Sequence[Mapping[str, Any] | None], rank: int | None = None) -> list[RowScore]:
        """Score rows given as dicts; the format of each row is inferred separately. See `__call__` for the errors."""
        return self._score_rendered(self._load(rank)[1](rows), rank)

    def renderer(self) -> Renderer:
        """The renderer of rows; if the model has not been loaded, only its tokenizer is.

        Raises:
            ModelError: If the tokenizer cannot be loaded.
            ProfileMismatchError: If its chat template is not the one of the profile.
        """
        if self._loaded is not None:
            return self._loaded[1]
        return profile_renderer(self.profile, columns=self.columns, model=self._runtime["model"])

    def _schema(self, batch: Mapping[str, Any]) -> Schema:
        """Schema of a batch, inferred once for all rows."""
        if self.columns:
            check_columns(batch, self.columns)
        return schema_for(batch, self.columns)

    def _render_rows(self, rows: Sequence[dict[str, Any]], schema: Schema, rank: int | None) -> list[Rendered]:
        return self._load(rank)[1](rows, schema)

    def _score_rendered(
        self, rendered: Sequence[Rendered], rank: int | None, on_read: Callable[[int], object] | None = None
    ) -> list[RowScore]:
        """Scores of rows; those without tokens have only a status."""
        reader, _ = self._load(rank)
        scores = self._score_tokens(reader, [item for item in rendered if item.tokens is not None], on_read)
        return [RowScore(status=item.status) if item.tokens is None else next(scores) for item in rendered]

    def features(self, existing: Features | None = None) -> Features:
        """Return the column types of a scored dataset, for ``map(features=…)``.

        Args:
            existing: Features of the dataset to be scored; default: only the new columns are returned.
        """
        layers, width = len(self.profile.layers), self.profile.width
        neighbor = {"id": Value("string"), "label": Value("string"), "cosine": Value("float32")}
        added = {
            "larf_score": Value("float32"),
            "larf_layer_scores": List(Value("float32"), length=layers),
            "larf_signals": {name: Value("float32") for name in self.signals},
            "larf_status": Value("string"),
            "larf_turn": Value("string"),
            "larf_neighbors": List(neighbor),
            "larf_state": List(Value("float16"), length=width),
        }
        return Features({**(existing or {}), **{name: added[name] for name in self._column_names}})

    @property
    def _column_names(self) -> list[str]:
        """Names of the columns that are written."""
        names = ["larf_score", "larf_layer_scores", "larf_signals", "larf_status", "larf_turn"]
        names += ["larf_neighbors"] if self.exemplars is not None else []
        return names + (["larf_state"] if self.keep_states else [])

    def _score_tokens(
        self, reader: StateReader, rendered: Sequence[Rendered], on_read: Callable[[int], object] | None
    ) -> Iterator[RowScore]:
        """Score rows that have tokens, in order."""
        tokens = [item.tokens for item in rendered if item.tokens is not None]
        if not tokens:
            return
        states = self.profile.fill_prompts(reader(tokens, self._positions, on_read), tokens)
        row_of_turn = np.repeat(np.arange(len(tokens)), [len(item.turns) for item in tokens])
        finite = _zero_non_finite(states)
        by_layer = {name: signal(states).astype(np.float32) for name, signal in self._fitted.items()}
        means = {name: values.mean(axis=1) for name, values in by_layer.items()} | self._text_baselines(rendered)
        turn_scores = means[self.profile.signal]
        highest = highest_turns(turn_scores, row_of_turn)
        row_states = states["last"][highest, 0]
        neighbors = (
            [None] * len(tokens) if self.exemplars is None else self.exemplars.search(row_states, self.neighbors)
        )
        non_finite, first = set(row_of_turn[~finite]), np.searchsorted(row_of_turn, np.arange(len(tokens)))
        for row, (item, turn) in enumerate(zip(rendered, highest, strict=True)):
            yield (
                RowScore(status="non_finite")
                if row in non_finite
                else RowScore(
                    status=item.status,
                    score=turn_scores[turn],
                    layer_scores=by_layer[self.profile.signal][turn],
                    signals={name: means[name][turn] for name in self.signals},
                    neighbors=neighbors[row],
                    state=row_states[row].clip(-HALF_MAX, HALF_MAX).astype(np.float16),
                    turn=_turn(int(turn - first[row]) + 1, len(tokens[row].turns)),
                )
            )

    @cached_property
    def _fitted(self) -> dict[str, Signal]:
        """Fitted signals by name: the profile's, and all requested ones that read states."""
        return {name: self.profile.fit(name) for name in {self.profile.signal, *self.signals} - set(BASELINES)}

    @cached_property
    def _text_baselines(self) -> TextBaselines:
        """The requested text-only baselines, fitted to the texts of the profile's references."""
        return TextBaselines.of(self._baselines, self.profile, self._load(None)[0])

    @property
    def _baselines(self) -> list[str]:
        return [name for name in self.signals if name in BASELINES]

    @property
    def _positions(self) -> list[Position]:
        """Positions of the states that the signals need; ``last`` is always read for neighbours and ``larf_state``."""
        needed = {"last"}.union(*(SIGNALS[name].positions for name in self._fitted))
        return [position for position in POSITIONS if position in needed]

    def _load(self, rank: int | None) -> tuple[StateReader, Renderer]:
        """The model, loaded and checked once per process, and the renderer of its rows."""
        if self._loaded is None:
            reader = self.profile.reader(**self._runtime, rank=rank)
            self._loaded = reader, reader.renderer(self.columns, keep_texts=bool(self._baselines))
        return self._loaded

    def _check(self) -> None:
        """Check the arguments, so that errors do not wait until the model is loaded."""
        for name in self.signals:
            if name not in {**SIGNALS, **BASELINES}:
                raise ProfileError(f"wanted signals among {', '.join([*SIGNALS, *BASELINES])}, got {name!r}")
        if self._baselines:
            reference_rows(self.profile)  # raises if their texts are not available
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
        """Every setting that can change a result, as canonical JSON; this is all that a plain pickle contains."""
        settings = {
            "algorithm": ALGORITHM,
            "profile": self.profile.digest,
            "exemplars": self.exemplars and self.exemplars.digest,
            "neighbors": self.neighbors,
            "signals": self.signals,
            "keep_states": self.keep_states,
            "columns": self.columns,
        }
        approximate = self.exemplars is not None and not is_exact(len(self.exemplars.ids))
        return json.dumps(settings | ({"exemplar_search": APPROXIMATE} if approximate else {}), sort_keys=True)

    def arguments(self) -> dict[str, Any]:
        """Return arguments that construct this scorer in a process of another machine, without this one's cache."""
        # Without what a profile or an index has computed and cannot be pickled.
        return {
            "profile": replace(self.profile),
            "exemplars": self.exemplars and replace(self.exemplars),
            "neighbors": self.neighbors,
            "signals": self.signals,
            "keep_states": self.keep_states,
            "columns": self.columns,
            **self._runtime,
        }

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # `map` hashes the pickle for its cache: so it must not contain runtime settings or a loaded model. It also
        # contains the path and name of `_rebuild`, so renaming or moving that function invalidates all caches.
        return _rebuild, (self.key,)


def _rebuild(key: str, runtime: Runtime | None = None, trust_remote_code: bool = False) -> LarfScorer:
    """Unpickle a scorer: its key, what its constructor stored in the cache, and the settings of the process."""
    settings = json.loads(key)
    exemplars = settings["exemplars"]
    folder = cache_home() / "profiles" / settings["profile"]
    return LarfScorer(
        SafetyProfile.from_pretrained(folder, trust_remote_code=trust_remote_code),
        exemplars=exemplars and ExemplarIndex.load(cache_home() / "exemplars" / exemplars),
        **{name: settings[name] for name in ("neighbors", "signals", "keep_states", "columns")},
        **(runtime or {}),
    )


def _sent_to_worker(scorer: LarfScorer) -> tuple[Any, tuple[str, Runtime, bool]]:
    """What a worker process gets: also the runtime settings, which belong to the process that starts it."""
    return _rebuild, (scorer.key, scorer._runtime, scorer.profile.source.trust_remote_code)


# Only what is sent to another process is pickled with these, not what `map` hashes.
for _pickler in (ForkingPickler, DatasetsForkingPickler):
    _pickler.register(LarfScorer, _sent_to_worker)


def _calibration_states(profile: SafetyProfile) -> Vectors:
    """States of a profile's references and neutral rows at its first layer, shape (n, d)."""
    return np.concatenate([profile.states[side]["last"][:, 0] for side in SIDES])


def _neighbor_cell(neighbor: Neighbor) -> dict[str, Any]:
    return {"id": neighbor.id, "label": neighbor.label, "cosine": np.float32(neighbor.cosine)}


def _turn(number: int, of: int) -> str | None:
    """The value of ``larf_turn``."""
    return f"{number}/{of}" if of > 1 else None


def highest_turns(scores: Vectors, row_of_turn: NDArray[np.intp]) -> NDArray[np.intp]:
    """Index of the highest-scoring turn of each row; the turns of a row are adjacent, and every row has one."""
    order = np.lexsort((scores, row_of_turn))
    return order[np.cumsum(np.bincount(row_of_turn)) - 1]


def _zero_non_finite(states: States) -> NDArray[np.bool_]:
    """Set turns with NaN or infinity to zero in place, so that formulas do not warn; returns which turns are finite."""
    finite = np.logical_and.reduce([np.isfinite(values).all(axis=(1, 2)) for values in states.values()])
    for position, values in states.items():
        if position != "length":
            values[~finite] = 0
    return np.asarray(finite)


def _without_media(batch: LazyBatch | LazyRow) -> dict[str, Any]:
    """The values of a batch or row of ``map``, without media columns, which would be decoded when they are read."""
    features = batch.formatter.features or Features.from_arrow_schema(batch.pa_table.schema)
    # Columns that the caller has replaced are no longer to be formatted, and are taken as they are.
    stored = [name for name in batch.pa_table.column_names if name in batch.keys_to_format]
    text = [name for name in stored if not is_media(features[name])]
    formatter = PythonFormatter(features=media_undecoded(Features({name: features[name] for name in text})))
    table = batch.pa_table.select(text)
    read = formatter.format_batch if isinstance(batch, LazyBatch) else formatter.format_row
    values = {**{name: value for name, value in batch.data.items() if name not in stored}, **read(table)}
    return {name: values[name] for name in batch.data if name in values}


def _is_batch(batch: Mapping[str, Any], values: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether the values are lists of several rows: by the type from `datasets`, or by the values of plain dicts."""
    if isinstance(batch, LazyBatch | LazyRow):
        return isinstance(batch, LazyBatch)
    cells = [_to_python(value) for value in values.values()]
    lengths = {len(value) if isinstance(value, list) else None for value in cells}
    return len(lengths) == 1 and None not in lengths and not any(_is_conversation(values[name]) for name in columns)


def _is_conversation(value: Any) -> bool:  # noqa: ANN401  a cell or a column
    """Whether a list is one conversation rather than a column of conversations.

    A column may contain dicts too: conversations of older datasets are dicts of lists, whose roles are not strings.
    """
    first = value[0] if len(value) else None
    return isinstance(first, Mapping) and any(isinstance(first.get(name), str) for name in ("role", "from"))


def _to_python(value: Any) -> Any:  # noqa: ANN401  a cell or a column
    """Lists in place of the arrays of a numpy format, which has arrays within arrays for parts of messages."""
    if isinstance(value, np.ndarray):
        return _nested_to_python(value.tolist())
    return _nested_to_python(value) if isinstance(value, dict) else value


def _nested_to_python(value: Any) -> Any:  # noqa: ANN401  a value within an array
    if isinstance(value, dict):
        return {key: _nested_to_python(item) for key, item in value.items()}
    return [_nested_to_python(item) for item in value] if isinstance(value, list | np.ndarray) else value


def _to_rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert lists by column to one dict per row."""
    values = [_to_python(value) for value in batch.values()]
    return [dict(zip(batch, cells, strict=True)) for cells in zip(*values, strict=True)]


class _TypedNulls(list[None]):
    """A column of nulls with a type: `map` infers the type of every column from the first batch."""

    def __init__(self, length: int, type: pa.DataType) -> None:
        super().__init__([None] * length)
        self._type = type

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return pa.nulls(len(self), type or self._type)


def _typed(column: list[Any], feature: object) -> list[Any]:
    """The column, with its type attached if it has only nulls.

    That type must be the one that `datasets` infers from values, lists of any length, so that the shards of
    ``map(num_proc=…)`` fit together.
    """
    if any(value is not None for value in column):
        return column
    inferred = List(feature.feature) if isinstance(feature, List) else feature
    return _TypedNulls(len(column), Features({"column": inferred}).arrow_schema.field("column").type)
