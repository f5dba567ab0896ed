"""The dataset card: metadata so that ``load_dataset`` loads the kept rows, and a generated section on their origin."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]
from datasets import DatasetInfo, SplitInfo
from datasets.splits import SplitDict
from huggingface_hub import DatasetCard, RepoCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from jinja2 import Environment, PackageLoader, StrictUndefined

from larf_curate.columns import ROW_ID, SCORE
from larf_curate.errors import PublishError
from larf_curate.publish.contents import CONFIG, Contents
from larf_curate.publish.kept_rows import KeptRows
from larf_curate.publish.redaction import redact
from larf_curate.publish.removed import FOLDER
from larf_curate.publish.shards import DECISION, Shards
from larf_curate.publish.source_card import SourceCard
from larf_curate.version import __version__

BEGIN, END = "<!-- larf-curate:begin -->", "<!-- larf-curate:end -->"
TAGS = ("larf-curate", "safety")
UNKNOWN = "not recorded"
DESCRIBED = (ROW_ID, SCORE, DECISION)
"""Published columns that the card describes."""
MAX_CHARACTERS = 200
"""Longest value in the generated section, in characters."""
MAX_CATEGORIES = 12
"""Most hazard categories whose removed rows are counted, the most frequent first."""
_SECTION_RE = re.compile(re.escape(BEGIN) + rf"(?:(?!{re.escape(BEGIN)})[\s\S])*?" + re.escape(END))
# An underscore between letters or digits is not emphasis. A colon is escaped only before //, since Markdown renderers
# turn URLs into links.
_MARKUP_CHARACTERS = re.compile(r"[\\`*{}\[\]<>#+!|~&$@]|:(?=//)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def merge_card(existing: str | None, contents: Contents, *, name: str, replace: bool = False) -> str:
    """Update a card with the generated section and the metadata of the rows; the rest of it does not change.

    Args:
        existing: Text of the existing card, if any.
        contents: What is published.
        name: Title of a new card.
        replace: Whether other splits of the default configuration are replaced.

    Returns:
        The text of the merged card.

    Raises:
        PublishError: If the existing card's metadata is invalid, its default configuration has other splits, or another
            configuration has the name of one that is published.
    """
    text = f"\n# {escape_inline(name)}\n" if existing is None else existing
    card = parse_card(text)
    add_tags(card, TAGS)
    others = other_configs(card.data.get("configs"), contents, replace=replace)
    card.data["configs"] = [*(_config(name, shards) for name, shards in contents.configs.items()), *others]
    card.data["dataset_info"] = _merge_dataset_info(card.data.get("dataset_info"), contents, others)
    _carry_over(card, contents.source)
    card.text = replace_section(card.text, render_section(contents, license_of(card)))
    return render_card(card, existing)


def parse_card(text: str, kind: type[RepoCard] = DatasetCard) -> RepoCard:
    """Parse a card; one without metadata gets an empty block.

    Args:
        text: Text of the card.
        kind: `DatasetCard` or `ModelCard`.

    Raises:
        PublishError: If its metadata is invalid.
    """
    if not REGEX_YAML_BLOCK.search(text):
        text = f"---\n\n---\n{text}"  # DatasetCard requires a block of metadata
    try:
        return kind(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise PublishError(
            f"the YAML metadata of the existing card is broken ({reason}): repair README.md first"
        ) from error


def render_card(card: RepoCard, existing: str | None) -> str:
    """The text of a card, with the lines of comments in the metadata of the existing one, which YAML would drop."""
    match = REGEX_YAML_BLOCK.search(existing or "")
    comments = [line for line in match.group(2).splitlines() if line.startswith("#")] if match else []
    text = str(card)
    line_break = "\r\n" if text.startswith("---\r\n") else "\n"
    first, rest = text.split(line_break, 1)
    return line_break.join([first, *comments, rest])


def add_tags(card: RepoCard, added: Iterable[str]) -> None:
    """Add tags to the metadata of a card, after those that it has."""
    tags = card.data.get("tags") or []
    tags = [str(tag) for tag in (tags if isinstance(tags, list) else [tags])]
    card.data["tags"] = [*tags, *(tag for tag in added if tag not in tags)]


def license_of(card: RepoCard) -> str | None:
    """The licence in the metadata of a card, as text; None if it has none."""
    found = card.data.get("license")
    return ", ".join(map(str, found)) if isinstance(found, list) else found and str(found)


def license_notes(card: str, source: SourceCard) -> list[str]:
    """What a person should know about the licence and languages of a published card.

    Args:
        card: Text of the card.
        source: What the card of the source dataset says.
    """
    notes = []
    if source.problem:
        notes.append(f"licence and languages of {source.dataset} could not all be read: {source.problem}")
    stated, theirs = license_of(DatasetCard(card)), source.metadata.get("license")
    if not stated:
        notes.append("the card states no licence, since none of the source is known: add license to its metadata")
    elif theirs and stated != (", ".join(theirs) if isinstance(theirs, list) else theirs):
        notes.append(f"the card states the licence {stated}, that of {source.dataset} states {theirs}")
    return notes


def decode_card(data: bytes) -> str:
    """Decode a card without changing its line endings.

    Args:
        data: The bytes of README.md.

    Returns:
        Its text, without a byte order mark.

    Raises:
        PublishError: If the bytes are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PublishError("README.md at the destination is not UTF-8 text: repair it first") from error


def other_configs(configs: object, contents: Contents, *, replace: bool = False) -> list[dict[str, Any]]:
    """Return the configurations of a card that are not those of a publication, none of them marked as the default.

    Args:
        configs: The value of ``configs`` in the metadata, of any type: people write it by hand.
        contents: What is published.
        replace: Whether other splits of the default configuration, and others' configurations of the same name, are
            replaced.

    Returns:
        Copies of the configurations.

    Raises:
        PublishError: If the default configuration has splits that would be lost, or another one has a name that is
            needed.
    """
    others = []
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict):
            continue
        name = config.get("config_name", CONFIG)
        if name == CONFIG:
            if not replace:
                _check_other_splits(config.get("data_files"), contents.shards.split)
        elif _is_ours(config):
            continue
        elif name == FOLDER and contents.removed and not replace:
            raise PublishError(
                f"the existing card has a configuration {FOLDER} of other files: rename it there, publish to a "
                "separate repository, or replace it (--replace)"
            )
        elif name != FOLDER or not contents.removed:
            others.append({key: value for key, value in config.items() if key != "default"})
    return others


def other_configs_of_card(card: str | None, contents: Contents, *, replace: bool = False) -> list[dict[str, Any]]:
    """Parse a card's text and return its `other_configs`; empty if it has no valid metadata."""
    match = REGEX_YAML_BLOCK.search(card or "")
    try:
        data = yaml.safe_load(match.group(2)) if match else None
    except yaml.YAMLError:
        return []
    return other_configs(data.get("configs"), contents, replace=replace) if isinstance(data, dict) else []


def render_section(contents: Contents, license: str | None) -> str:
    """Render the card's section on how the rows were chosen; every value in it is escaped.

    Args:
        contents: What is published.
        license: The licence that the card states.
    """
    values = section_values(contents.kept_rows) | {
        "license": license or "not known",
        "source_id": contents.source.dataset,
        "removed": contents.removed.rows if contents.removed else 0,
        "has_removed_text": contents.has_removed_text,
        "pictures": contents.pictures,
        "columns": [name for name in DESCRIBED if name in contents.shards.features],
    }
    return render_template("dataset_section.md.j2", values)


def render_template(name: str, values: Mapping[str, Any]) -> str:
    """Render a template of Markdown between ``BEGIN`` and ``END``; every value in it is escaped."""
    environment = Environment(
        loader=PackageLoader("larf_curate", "templates"),
        undefined=StrictUndefined,
        finalize=escape_inline,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # that is for HTML; the template is Markdown, and `escape_inline` escapes every value
    )
    return f"{BEGIN}\n{environment.get_template(name).render(values).strip()}\n{END}"


def escape_inline(value: object) -> str:
    """Escape a value for a line of Markdown: no markup or HTML, one line, at most `MAX_CHARACTERS`."""
    text = " ".join(str(value)[: 4 * MAX_CHARACTERS].split())  # values may be megabytes long
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return _MARKUP_CHARACTERS.sub(lambda match: "\\" + match.group(), text)


def replace_section(body: str, section: str) -> str:
    """Replace the generated section of a card, or append it if there is none; further copies of it are removed."""
    line_break = "\r\n" if "\r\n" in body else "\n"  # as in the rest of the card
    section = section.replace("\n", line_break)
    first = _SECTION_RE.search(body)
    if not first:
        return body.rstrip("\r\n") + line_break * 2 + section + line_break
    return body[: first.start()] + section + _SECTION_RE.sub("", body[first.end() :])


def _config(name: str, shards: Shards) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": shards.split, "path": shards.pattern}]}


def _is_ours(config: dict[str, Any]) -> bool:
    """Whether a configuration is that of removed rows as `_config` writes it, of any split."""
    files = config.get("data_files")
    [entry] = files if isinstance(files, list) and len(files) == 1 else [None]
    return (
        config.get("config_name") == FOLDER
        and isinstance(entry, dict)
        and entry.get("path") == f"{FOLDER}/{entry.get('split')}-*"
    )


def _carry_over(card: RepoCard, source: SourceCard) -> None:
    """Add the source and, where the card does not state them, its licence and languages to a card's metadata."""
    if source.dataset:
        listed = card.data.get("source_datasets") or []
        listed = [str(item) for item in (listed if isinstance(listed, list) else [listed])]
        card.data["source_datasets"] = [*listed, *([source.dataset] if source.dataset not in listed else [])]
    stated = card.data.get("license") is not None
    for name, value in source.metadata.items():
        if card.data.get(name) is None and not (stated and name.startswith("license")):
            card.data[name] = value


def _check_other_splits(data_files: object, split: str) -> None:
    listed = [item for item in data_files if isinstance(item, dict)] if isinstance(data_files, list) else []
    if others := [escape_inline(item.get("split")) for item in listed if item.get("split") != split]:
        raise PublishError(
            f"the existing dataset also has the split {', '.join(others)}, which would no longer load beside the"
            " published columns: publish to a separate repository, or replace it (--replace)"
        )


def _merge_dataset_info(
    existing: object, contents: Contents, others: list[dict[str, Any]]
) -> dict[str, Any] | list[dict[str, Any]]:
    """Replace the entries of the published configurations in ``dataset_info``; entries of others are kept."""
    entries = existing if isinstance(existing, list) else [existing]
    names = {CONFIG, FOLDER} - {config.get("config_name") for config in others}
    rest = [e for e in entries if isinstance(e, dict) and e.get("config_name", CONFIG) not in names]
    ours = [{"config_name": name, **_dataset_info(shards)} for name, shards in contents.configs.items()]
    if len(ours) + len(rest) > 1:
        return [*ours, *rest]
    # A card with one configuration has a mapping without its name, one with several has a list of named mappings.
    return {key: value for key, value in ours[0].items() if key != "config_name"}


def _dataset_info(shards: Shards) -> dict[str, Any]:
    splits = SplitDict()
    splits.add(SplitInfo(shards.split, num_bytes=shards.num_bytes, num_examples=shards.rows))
    size = sum(path.stat().st_size for path in shards.files.values())
    info = DatasetInfo(features=shards.features, splits=splits, download_size=size, dataset_size=shards.num_bytes)
    values: dict[str, Any] = info._to_yaml_dict()  # datasets has no public way to get the YAML form
    values.pop("config_name", None)
    return values


def section_values(kept_rows: KeptRows) -> dict[str, Any]:
    """How rows were chosen, in short values for the card, with private values redacted."""
    selection, scored = redact(kept_rows.selection), redact(kept_rows.scored)
    profile = _dict_or_empty(scored.get("profile"))
    threshold = selection.get("threshold")
    status = _dict_or_empty(scored.get("status") or selection.get("status"))
    return {
        "counts": kept_rows.counts,
        "reviewed": kept_rows.is_reviewed,
        "reviewers": kept_rows.reviewers,
        "merge": redact(kept_rows.manifest).get("merge", UNKNOWN),
        "categories": sorted(kept_rows.categories.items(), key=lambda item: (-item[1], item[0]))[:MAX_CATEGORIES],
        "dataset": _describe(scored.get("source")),
        "model": profile.get("model") or profile.get("model_id") or UNKNOWN,
        "revision": profile.get("revision") or UNKNOWN,
        "dtype": profile.get("dtype") or UNKNOWN,
        "layers": ", ".join(map(str, profile.get("layers") or [])) or UNKNOWN,
        "signal": profile.get("signal") or UNKNOWN,
        "top_k": profile.get("top_k"),
        "references": _describe(profile.get("references")),
        "profile_digest": str(profile.get("digest") or UNKNOWN),
        "rule": _describe(selection.get("rule")),
        "threshold": f"{threshold:.6g}" if isinstance(threshold, int | float) else UNKNOWN,
        "truncated": status.get("truncated", 0),
        "scored_with": scored.get("package") or UNKNOWN,
        "package": f"larf-curate {__version__}",
    }


def _dict_or_empty(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _describe(value: object) -> str:
    """Format a nested record as ``key value, key value``."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_describe(item)}" for key, item in value.items() if item is not None) or UNKNOWN
    if isinstance(value, list):
        return ", ".join(_describe(item) for item in value)
    return UNKNOWN if value is None else str(value)
