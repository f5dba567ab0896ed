"""The dataset card: metadata by which ``load_dataset`` gives the kept rows, and a section rewritten each time."""

import re
from typing import Any

import yaml  # type: ignore[import-untyped]
from datasets import DatasetInfo, SplitInfo
from datasets.splits import SplitDict
from huggingface_hub import DatasetCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from jinja2 import Environment, PackageLoader, StrictUndefined

from larf_curate.errors import PublishError
from larf_curate.publish.kept_rows import Source
from larf_curate.publish.redaction import without_private
from larf_curate.publish.shards import Shards
from larf_curate.version import __version__

BEGIN, END = "<!-- larf-curate:begin -->", "<!-- larf-curate:end -->"
CONFIG, SPLIT, PATTERN = "default", "train", "data/train-*"
TAGS = ("larf-curate", "safety")
UNKNOWN = "not recorded"
LONGEST = 200
_SECTION = re.compile(re.escape(BEGIN) + rf"(?:(?!{re.escape(BEGIN)})[\s\S])*?" + re.escape(END))
_MARKUP = re.compile(r"[\\`*{}\[\]<>#+!|~&$@]|:(?=//)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def merge_card(existing: str | None, section: str, *, name: str, shards: Shards) -> str:
    """Put the section and the metadata of the kept rows into a card, and leave everything else of it alone.

    Args:
        existing: The card that is there, if any.
        section: The rewritten section, with its marks.
        name: Title of a new card.
        shards: The rows that ``load_dataset`` shall give.

    Returns:
        The text of the merged card.

    Raises:
        PublishError: If the existing card's metadata cannot be read, or its default configuration has other splits.
    """
    text = f"\n# {inline(name)}\n" if existing is None else existing
    if not REGEX_YAML_BLOCK.search(text):
        text = f"---\n\n---\n{text}"
    try:
        card = DatasetCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise PublishError(
            f"the YAML metadata of the card there is broken ({reason}): repair README.md first"
        ) from error
    card.text = _replace_section(card.text, section)
    tags = card.data.get("tags") or []
    tags = [str(tag) for tag in (tags if isinstance(tags, list) else [tags])]
    card.data["tags"] = [*tags, *(tag for tag in TAGS if tag not in tags)]
    card.data["configs"] = [_our_config(), *other_configs(card.data.get("configs"))]
    card.data["dataset_info"] = _infos(card.data.get("dataset_info"), shards)
    return str(card)


def decode_card(data: bytes) -> str:
    """The text of a card's bytes, line ends as they are.

    Args:
        data: The bytes of README.md.

    Returns:
        Its text, without a byte order mark.

    Raises:
        PublishError: If they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PublishError("README.md at the destination is not UTF-8 text: repair it first") from error


def other_configs(configs: object) -> list[dict[str, Any]]:
    """The configurations of a card beside the default one, none of them marked as the default.

    Args:
        configs: The value of ``configs`` in the metadata, of any type.

    Returns:
        Copies of them.

    Raises:
        PublishError: If the default one has splits that would be lost.
    """
    others = []
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict):
            continue
        if config.get("config_name", CONFIG) == CONFIG:
            _refuse_other_splits(config.get("data_files"))
        else:
            others.append({key: value for key, value in config.items() if key != "default"})
    return others


def configs_of(card: str | None) -> list[dict[str, Any]]:
    """`other_configs` of a card's text; none if it has no readable metadata."""
    match = REGEX_YAML_BLOCK.search(card or "")
    try:
        data = yaml.safe_load(match.group(2)) if match else None
    except yaml.YAMLError:
        return []
    return other_configs(data.get("configs")) if isinstance(data, dict) else []


def render_section(source: Source) -> str:
    """The card's section on how the rows were chosen; every value in it is escaped."""
    environment = Environment(
        loader=PackageLoader("larf_curate", "templates"),
        undefined=StrictUndefined,
        finalize=inline,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # the text is Markdown: `inline` escapes every value
    )
    template = environment.get_template("dataset_section.md.j2")
    return f"{BEGIN}\n{template.render(_facts(source)).strip()}\n{END}"


def inline(value: object) -> str:
    """A value as plain text within a line of Markdown: one line, at most ``LONGEST`` characters, no markup, no HTML."""
    text = " ".join(str(value)[: 4 * LONGEST].split())
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return _MARKUP.sub(lambda match: "\\" + match.group(), text)


def _replace_section(body: str, section: str) -> str:
    """Put the section where it was, or at the end; a second one, left by hand, goes."""
    line_break = "\r\n" if "\r\n" in body else "\n"
    section = section.replace("\n", line_break)
    first = _SECTION.search(body)
    if not first:
        return body.rstrip("\r\n") + line_break * 2 + section + line_break
    return body[: first.start()] + section + _SECTION.sub("", body[first.end() :])


def _our_config() -> dict[str, Any]:
    return {"config_name": CONFIG, "data_files": [{"split": SPLIT, "path": PATTERN}]}


def _refuse_other_splits(data_files: object) -> None:
    listed = [item for item in data_files if isinstance(item, dict)] if isinstance(data_files, list) else []
    if others := [inline(item.get("split")) for item in listed if item.get("split") != SPLIT]:
        raise PublishError(
            f"the dataset there also has the split {', '.join(others)}, which would no longer load beside the published"
            " columns: publish to a repository of its own"
        )


def _infos(existing: object, shards: Shards) -> dict[str, Any] | list[dict[str, Any]]:
    """``dataset_info`` with ours in place of that of the default configuration."""
    entries = existing if isinstance(existing, list) else [existing]
    others = [e for e in entries if isinstance(e, dict) and e.get("config_name", CONFIG) != CONFIG]
    splits = SplitDict()
    splits.add(SplitInfo(SPLIT, num_bytes=shards.num_bytes, num_examples=shards.rows))
    size = sum(path.stat().st_size for path in shards.files.values())
    info = DatasetInfo(features=shards.features, splits=splits, download_size=size, dataset_size=shards.num_bytes)
    ours: dict[str, Any] = info._to_yaml_dict()
    ours.pop("config_name", None)
    return [{"config_name": CONFIG, **ours}, *others] if others else ours


def _facts(source: Source) -> dict[str, Any]:
    """What the template states."""
    selection, scored = without_private(source.selection), without_private(source.scored)
    profile = _mapping(scored.get("profile"))
    threshold = selection.get("threshold")
    status = _mapping(scored.get("status") or selection.get("status"))
    return {
        "counts": source.counts,
        "reviewed": source.reviewed,
        "reviewers": source.reviewers,
        "merge": without_private(source.record).get("merge", UNKNOWN),
        "categories": sorted(source.categories.items(), key=lambda item: (-item[1], item[0]))[:12],
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


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _describe(value: object) -> str:
    """A small record as ``key value, key value``."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_describe(item)}" for key, item in value.items() if item is not None) or UNKNOWN
    if isinstance(value, list):
        return ", ".join(_describe(item) for item in value)
    return UNKNOWN if value is None else str(value)
