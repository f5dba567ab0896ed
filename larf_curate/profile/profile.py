"""`SafetyProfile`: built from a model and references; fits signals, and loads the model for scoring."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from larf_curate.conversation.schemas import DEFAULT_SEPARATOR, SEPARATOR, Row
from larf_curate.conversation.templates import template_digest
from larf_curate.conversation.truncation import Tokens
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ProfileError, ProfileMismatchError
from larf_curate.files import cache_home
from larf_curate.layers.choice import best_layers
from larf_curate.layers.report import LayerReport
from larf_curate.models.adapters import is_available
from larf_curate.models.devices import resolve_device, resolve_dtype
from larf_curate.models.dtypes import Dtype
from larf_curate.models.hidden_states import DEFAULT_BATCH_TOKENS, DEFAULT_MAX_LENGTH, StateReader
from larf_curate.models.loading import load_reader
from larf_curate.models.source import ModelSource, count_layers, identify, public_name
from larf_curate.models.template_dates import writes_dates
from larf_curate.profile import storage
from larf_curate.profile.building import LazyModel, SourceRows, fix_template, layers_to_read, read_profile
from larf_curate.profile.checks import MAX_DRIFT, MAX_QUANTISED_DRIFT, check_drift
from larf_curate.profile.decided import DECIDED_SIDES, Decided, fit_with_decided, in_words
from larf_curate.profile.layer_choice import check_report, choice_of, find_sensitivity, sensitivity_of
from larf_curate.profile.reference_states import BORDERLINE, MATCHED, SIDES, read_states
from larf_curate.remote import public_name as url_name
from larf_curate.remote import uploaded
from larf_curate.signals import AXES, DEFAULT_SIGNAL, SIGNALS, ReferenceStates, Signal, SignalKind
from larf_curate.signals.held_out import HeldOut, Sides, held_out
from larf_curate.signals.protocol import Fit
from larf_curate.states import States, Vectors
from larf_curate.version import __version__


@dataclass(frozen=True, kw_only=True, eq=False)
class SafetyProfile:
    """A model, its layers, the reference states at these layers, and the signal that compares rows with them.

    Args:
        source: The model: id, revision, resolved dtype.
        template_digest: Hex SHA-256 of the chat template.
        layers: 0-based decoder blocks.
        states: States by side (``unsafe``, ``safe``, ``neutral``) and position, each of shape (n, layers, d), float32.
            If reference answers were cut to the length of their counterparts, also ``unsafe_matched`` or
            ``safe_matched``, to which all signals except ``larf`` are fitted. If people's decisions were added, also
            those sides of `larf_curate.profile.decided` that have rows.
        references: Source, digest, counts and labels of the reference set, and the number of cut answers of each side.
        neutral: Source, digest and count of the neutral rows.
        choice: How the layers were chosen: ``by``, and the findings that it is based on.
        canary: The first unsafe reference, whose state identifies the model when it is loaded.
        signal: Name of the signal that gives ``larf_score``.
        top_k: Pairs that count in the LARF score; None for all.
        max_length: Longest conversation in tokens.
        package: Version of this package that built the profile.
        decisions: Where the rows that people decided come from, and what they changed; None if none were added.
    """

    source: ModelSource
    template_digest: str
    layers: tuple[int, ...]
    states: dict[str, States]
    references: dict[str, Any]
    neutral: dict[str, Any]
    canary: Row
    choice: dict[str, Any] = field(default_factory=dict)
    signal: str = DEFAULT_SIGNAL
    top_k: int | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    package: str = f"larf-curate {__version__}"
    decisions: dict[str, Any] | None = None

    @classmethod
    def build(
        cls,
        model: str | Path,
        references: ReferenceSet | str | Path = "builtin",
        *,
        layers: Sequence[int] | LayerReport | Literal["all", "auto"] = "auto",
        match_lengths: bool | None = None,
        neutral: str | Path | Sequence[Row] = "builtin",
        signal: str = DEFAULT_SIGNAL,
        top_k: int | None = None,
        dtype: Dtype = "auto",
        revision: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        chat_template: str | None = None,
        template_name: str | None = None,
        adapter: str | Path | None = None,
        strip_prefix: str | None = None,
        input_separator: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> "SafetyProfile":
        """Build a profile: compute the reference states of a model.

        Args:
            model: A local folder or a Hub id.
            references: A set, or an argument of `ReferenceSet.load`.
            layers: 0-based decoder blocks; ``all``; a report of `find_safety_layers`; or ``auto``. Both a report and
                ``auto`` choose three blocks of the middle half of the model, by two equal criteria: how well the signal
                (of the default signal: both its components) separates held-out references there, and the share of
                what refusals depend on that has been computed up to there, according to the report or, with ``auto``,
                to the gradient method.
            match_lengths: Whether reference answers with over 1.5 times their counterpart's tokens are cut to its
                length. Default: they are, except with ``signal="larf"``, which is always the published score.
            neutral: Neutral rows, which define what is normal for the model: ``builtin``, a file, a folder, a Hub
                dataset id, or rows.
            signal: Name of the signal that gives ``larf_score``.
            top_k: Pairs that count in the LARF score; None for all, as in the paper.
            dtype: ``auto`` is bfloat16 where the hardware supports it natively, float32 elsewhere.
            revision: Commit, tag or branch of a Hub id.
            max_length: Longest conversation in tokens.
            chat_template: A Jinja chat template to use instead of the model's own.
            template_name: Name of one of several chat templates of the model. Default: ``tool_use`` for rows with
                tools, else ``default``.
            adapter: Folder or Hub id of a PEFT adapter to merge into the model.
            strip_prefix: A prefix to remove from the names of the model's weights, such as ``_orig_mod.``.
            input_separator: Text between the instruction of an Alpaca or Dolly row and its input. Default: one line
                break.
            device: A torch device. Default: the first available accelerator.
            trust_remote_code: Whether code from the model's repository may run.

        Raises:
            ModelError: If the model cannot be loaded, or lacks weights, a chat template or a layer.
            ReferenceSetError: If a reference cannot be scored, the references do not suit the signal, both sides are
                the same, or a neutral row is a reference too.
            ProfileError: If the signal does not exist, or the layer report does not fit the model.
        """
        if isinstance(layers, str) and layers not in ("auto", "all"):
            raise ProfileError(f"wanted layers as a list of numbers, 'auto' or 'all', got {layers!r}")
        auto = isinstance(layers, str) and layers == "auto"
        choose = auto or isinstance(layers, LayerReport)
        rows = SourceRows.load(references, neutral, signal, match_lengths=match_lengths, choose_layers=choose)
        device = resolve_device(device)
        source = fix_template(
            ModelSource(
                model_id=identify(model),
                revision=revision,
                dtype=resolve_dtype(dtype, device),
                chat_template=chat_template,
                template_name=template_name,
                adapter=identify(adapter) if adapter else None,
                strip_prefix=strip_prefix,
                input_separator=None if input_separator == DEFAULT_SEPARATOR else input_separator,
                trust_remote_code=trust_remote_code,
            )
        )
        if isinstance(layers, LayerReport):
            check_report(layers, source, count_layers(source))
        # Converted to int: numpy integers could not be written as JSON.
        given = None if isinstance(layers, str | LayerReport) else tuple(dict.fromkeys(map(int, layers)))
        lazy = LazyModel(
            source=source,
            layers=layers_to_read(source, given, choose=choose),
            device=device,
            max_length=max_length,
            head=auto,  # for the gradient: the model is loaded with its head at once rather than twice
        )
        profile = cls(
            **read_profile(lazy, rows),
            choice={"by": "the user"},
            signal=signal,
            top_k=top_k,
            max_length=max_length,
        )
        # Raises now rather than at scoring if the references do not suit the signal, for which one layer is enough.
        profile.at(profile.layers[:1]).fit(signal)
        if not choose:
            return profile
        report = layers if isinstance(layers, LayerReport) else find_sensitivity(lazy)
        best = profile.best_layers(report, blocks=count_layers(source))
        return replace(profile.at(best), choice=choice_of(report, best))

    @property
    def axes(self) -> tuple[str, ...]:
        """Signals that make up the profile's: the axes of the default signal, else the signal itself.

        The axis ``compliance`` is missing if the safe references are no refusals.
        """
        if self.signal != DEFAULT_SIGNAL:
            return (self.signal,)
        return tuple(name for name in AXES if name != "compliance" or BORDERLINE in self.states)

    def best_layers(self, report: LayerReport | None = None, *, blocks: int | None = None) -> tuple[int, ...]:
        """Layers that ``auto`` chooses from a profile of the middle half of the model or of more layers.

        Args:
            report: A layer report; if it recommends a layer, it counts as much as separation.
            blocks: Number of decoder blocks of the model; default: all are in the profile.

        Returns:
            Three layers in rising order; see `larf_curate.layers.choice`.
        """
        sensitivity = sensitivity_of(report)
        fits = [self._kind(name).fit for name in self.axes]
        count = len(self.layers) if blocks is None else blocks
        return best_layers(fits, self.references_for(), count, read=self.layers, sensitivity=sensitivity)

    def references_for(self, signal: str | None = None) -> ReferenceStates:
        """States that a signal is fitted to: of answers cut to equal length, if there are any and the signal uses them.

        Args:
            signal: Name of the signal; default: the profile's.

        Raises:
            ProfileError: If the signal does not exist.
        """
        full_answers = self._kind(signal).full_answers
        sides = {side: self.states[side if full_answers else _matched_side(self.states, side)] for side in SIDES}
        borderline = self.states.get(BORDERLINE, {}).get("prompt")
        return ReferenceStates(**sides, borderline=borderline, top_k=self.top_k)

    def at(self, layers: Sequence[int]) -> "SafetyProfile":
        """The same profile restricted to some of its layers.

        Raises:
            ProfileError: If the profile lacks one of them.
        """
        if missing := set(layers) - set(self.layers):
            raise ProfileError(f"the profile has layers {list(self.layers)}, not {sorted(missing)}: build it with them")
        indices = [self.layers.index(layer) for layer in layers]
        states: dict[str, States] = {
            side: {position: values[:, indices] for position, values in by.items()} for side, by in self.states.items()
        }
        return replace(self, layers=tuple(layers), states=states)

    def fill_prompts(self, states: States, conversations: Sequence[Tokens]) -> States:
        """Give turns without a prompt (plain text) the mean prompt state of neutral rows.

        Signals that read the prompt then rate it as neutral, and the rest of the score is about the text.

        Args:
            states: States of shape (t, layers, d) at every position; changed in place.
            conversations: The conversations that were read, with t turns in total.

        Returns:
            The same states.
        """
        without_prompt = np.array([turn.start == 0 for item in conversations for turn in item.turns], bool)
        if "prompt" in states and without_prompt.any():
            states["prompt"][without_prompt] = self.states["neutral"]["prompt"].mean(axis=0)
        return states

    def fit(self, signal: str | None = None) -> Signal:
        """Fit a signal to the reference states; default: the profile's signal.

        Raises:
            ProfileError: If the signal does not exist.
            ReferenceSetError: If the references do not suit it.
        """
        return self.fit_of(signal)(self.references_for(signal))

    def fit_of(self, signal: str | None = None, decided: Decided | None = None) -> Fit:
        """The fit of a signal to references, to which decided rows are added.

        Args:
            signal: Name of the signal; default: the profile's.
            decided: States of decided rows by side; default: those of the profile.

        Raises:
            ProfileError: If the signal does not exist.
        """
        kind = self._kind(signal)
        return fit_with_decided(kind.fit, signal or self.signal, self.decided if decided is None else decided)

    @property
    def decided(self) -> Decided:
        """States of the rows that people decided, by side; empty if none were added."""
        return {side: self.states[side] for side in DECIDED_SIDES if side in self.states}

    def _kind(self, signal: str | None) -> SignalKind:
        name = signal or self.signal
        if name not in SIGNALS:
            raise ProfileError(f"wanted a signal among {', '.join(SIGNALS)}, got {name!r}")
        return SIGNALS[name]

    def held_out(self, signal: str | None = None, *, sides: Sides = SIDES) -> HeldOut:
        """Score references and neutral rows by signals fitted without them; see `larf_curate.signals.held_out`.

        Args:
            signal: Name of the signal; default: the profile's.
            sides: Sides to hold out and score.

        Raises:
            ProfileError: If the signal does not exist.
            ReferenceSetError: If a side has a single row.
        """
        return held_out(self.fit_of(signal), self.references_for(signal), sides=sides)

    @cached_property
    def calibration(self) -> dict[str, Any]:
        """Number of neutral rows, and the upper half of their held-out scores in falling order, as JSON values.

        Thresholds for a given false-flag rate are read from these scores.
        """
        scores = np.sort(self.held_out(sides=("neutral",)).neutral.mean(axis=1))[::-1]
        return {"neutral_rows": len(scores), "highest": [round(float(s), 6) for s in scores[: len(scores) // 2]]}

    def reader(
        self,
        *,
        model: str | None = None,
        device: str | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        rank: int | None = None,
    ) -> StateReader:
        """Load the profile's model up to its deepest layer, and check that it is the one the profile was built with.

        Args:
            model: Model path, if it has moved since the profile was built.
            device: A torch device. Default: the first available accelerator.
            batch_tokens: Most tokens per batch; 0 for the device's default.
            rank: Rank of this process among the scoring processes, which selects among several GPUs.

        Raises:
            ModelError: If the model cannot be loaded.
            ProfileMismatchError: If the model or its chat template is not the profile's.
        """
        source = self._moved_to(model) if model else self.source
        reader = load_reader(
            source,
            self.layers,
            device=resolve_device(device, rank),
            max_length=self.max_length,
            batch_tokens=batch_tokens,
        )
        self._check(reader, source)
        return reader

    def _moved_to(self, model: str) -> ModelSource:
        """The source with the model at another path; an adapter that is not available must be merged into it."""
        source = replace(self.source, model_id=identify(model), revision=None)
        merged = source.adapter is not None and not is_available(source.adapter)
        return replace(source, adapter=None, strip_prefix=None) if merged else source

    def _check(self, reader: StateReader, source: ModelSource) -> None:
        if template_digest(reader.tokenizer) != self.template_digest:
            raise ProfileMismatchError(
                f"the chat template of {source.model_id} is not the one this profile was built with: "
                "build the profile again, or score with the model and revision that it records"
            )
        recorded = self.states["unsafe"]["last"][:1]
        if reader.width != self.width:
            raise ProfileMismatchError(
                f"wanted a model of width {self.width}, got {source.model_id} of width {reader.width}: give the model "
                "that this profile was built with, or build another profile"
            )
        # The state of one reference tells models apart that have the same architecture.
        computed = read_states(reader, [self.canary], "unsafe")["last"]
        check_drift(
            computed,
            recorded,
            allowed=MAX_QUANTISED_DRIFT if reader.is_quantised else MAX_DRIFT[source.dtype],
            model_id=source.model_id,
            built_with=self.source.model_id,
            undated=self.source.day is None and writes_dates(reader.tokenizer),
        )

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of everything that the profile records, states included; independent of its folder."""
        digest = hashlib.sha256(json.dumps(self._config(), sort_keys=True).encode())
        for key, value in sorted(self._tensors().items()):
            digest.update(key.encode() + value.tobytes())
        return digest.hexdigest()

    @property
    def width(self) -> int:
        """Width d of the hidden states."""
        return int(self.states["unsafe"]["last"].shape[-1])

    def __repr__(self) -> str:
        """The facts of `summary` in a few lines, without states and texts."""
        refs, neutral = self._public_references(), self.neutral
        facts = {
            "model": f"{public_name(self.source.model_id)} ({self.source.dtype})",
            "layers": f"{', '.join(map(str, self.layers))} ({self.choice.get('by', 'not recorded')})",
            "signal": self.signal,
            "references": f"{refs['unsafe']} unsafe, {refs['safe']} safe ({refs['source']})",
            "neutral": f"{neutral['rows']} rows ({neutral['source']})",
            **({} if self.decisions is None else {"decisions": in_words(self.decisions)}),
            "digest": self.digest,
        }
        return "\n".join([type(self).__name__, *(f"  {name:10}  {value}" for name, value in facts.items())])

    def summary(self) -> dict[str, Any]:
        """Summary for reports and dataset cards: JSON values, no texts, no local paths."""
        return {
            "model": public_name(self.source.model_id),
            **({"adapter": public_name(self.source.adapter)} if self.source.adapter else {}),
            "revision": self.source.revision,
            "dtype": self.source.dtype,
            "layers": list(self.layers),
            "layer_choice": self.choice,
            "signal": self.signal,
            "top_k": self.top_k,
            "max_length": self.max_length,
            "template_sha256": self.template_digest,
            **({} if self.source.input_separator is None else {SEPARATOR: self.source.input_separator}),
            "references": _unlabelled(self._public_references()),
            "neutral": self.neutral,
            "calibration": self.calibration,
            "digest": self.digest,
            "package": self.package,
            **({} if self.decisions is None else {"decisions": _unlabelled(self.decisions)}),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the profile to a folder or URL, as ``larf_profile.json`` and ``larf_profile.safetensors``."""
        with uploaded(folder, last=storage.CONFIG_FILE) as local:
            storage.write(local, self._config(), self._tensors(), self.digest)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        trust_remote_code: bool = False,
    ) -> "SafetyProfile":
        """Read a profile from a folder, a URL of one, or a Hub model repository.

        Args:
            name: The folder, its URL or the repository.
            revision: Branch, tag or commit of the repository.
            token: Hub token; default: the one stored on this machine.
            trust_remote_code: Whether code from the model's repository may run; never read from the profile itself.

        Raises:
            ProfileError: If there is no profile, it is damaged, or it is of another format.
        """
        folder, name = storage.find(name, revision=revision, token=token), url_name(name)
        config = storage.read_config(folder, name)
        try:
            source = ModelSource(**config["source"] | {"trust_remote_code": trust_remote_code})
            states = storage.read_tensors(folder)
            storage.check_states(states, config)
            profile = cls(**config | {"source": source, "layers": tuple(config["layers"]), "states": states})
            digest = profile.digest
        except storage.DAMAGE_ERRORS as error:
            raise storage.damaged_error(name, error) from error
        storage.check_digest(folder, name, digest)
        return profile

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the profile with a model card to a Hub model repository; returns the URL of the commit.

        The card has the tag ``larf-profile`` and the library name; the text and metadata of an existing card stay. The
        same profile again makes no commit. Others load it by repository and commit: ``from_pretrained(repo_id,
        revision=…)``.

        A local model is recorded by the name of its folder only, so that others must pass ``model=`` to score with it.
        """
        adapter = self.source.adapter and public_name(self.source.adapter)
        source = replace(self.source, model_id=self.summary()["model"], adapter=adapter)
        public = replace(self, source=source, references=self._public_references())
        from larf_curate.profile.card import merge_profile_card  # imports matplotlib, which takes a second

        def merge_card(existing: str | None, repo: str) -> str:
            return merge_profile_card(existing, public.summary(), repo_id=repo)

        return storage.upload(cache_profile(public), repo_id, merge_card, private=private, token=token)

    def _public_references(self) -> dict[str, Any]:
        """Description of the references without their folder."""
        return {**self.references, "source": public_name(self.references["source"])}

    def _config(self) -> dict[str, Any]:
        keys = (
            "template_digest",
            "references",
            "neutral",
            "canary",
            "choice",
            "signal",
            "top_k",
            "max_length",
            "package",
        )
        values = {key: getattr(self, key) for key in keys}
        added = {} if self.decisions is None else {"decisions": self.decisions}
        return {"source": self.source.record, "layers": list(self.layers), **values, **added}

    def _tensors(self) -> dict[str, Vectors]:
        named = {f"{side}.{position}": v for side, by in self.states.items() for position, v in by.items()}
        # safetensors writes the memory of an array as it is: that of a view would be in the wrong order.
        return {name: np.ascontiguousarray(values) for name, values in named.items()}


def cache_profile(profile: SafetyProfile) -> Path:
    """Save a profile under its digest in the user's cache, from where worker processes load it; returns the folder.

    A copy that is there already is read, and replaced if it is damaged.
    """
    folder = cache_home() / "profiles" / profile.digest
    if not _is_copy(folder, profile):
        profile.save_pretrained(folder)
    return folder


def _is_copy(folder: Path, profile: SafetyProfile) -> bool:
    """Whether a folder holds a profile, undamaged."""
    try:
        return folder.is_dir() and SafetyProfile.from_pretrained(folder).digest == profile.digest
    except ProfileError:
        return False


def _unlabelled(record: dict[str, Any]) -> dict[str, Any]:
    """Description of references or decided rows without the hazard category of each."""
    return {key: value for key, value in record.items() if key != "labels"}


def _matched_side(states: dict[str, States], side: str) -> str:
    """Name of the side with its answers cut to equal length, or the side itself if none was cut."""
    return f"{side}{MATCHED}" if f"{side}{MATCHED}" in states else side
