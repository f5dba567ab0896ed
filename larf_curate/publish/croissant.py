"""``croissant.json``: the dataset in the vocabulary of Croissant 1.1, with fields of responsible AI (RAI 1.0).

Specifications: http://mlcommons.org/croissant/1.1 and http://mlcommons.org/croissant/RAI/1.0. The Hub generates a
Croissant file too, without the latter fields; this one is a file of the repository.
"""

import json
from collections.abc import Mapping
from typing import Any

from datasets import ClassLabel, LargeList, List, Value

from larf_curate.publish.content import digest, size
from larf_curate.publish.contents import Contents
from larf_curate.version import __version__

FILE = "croissant.json"
PAPERS = ("https://arxiv.org/abs/2507.18631", "https://arxiv.org/abs/2505.16737")
LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
_KINDS = {"string": "sc:Text", "large_string": "sc:Text", "bool": "sc:Boolean", "date32": "sc:Date"}
_NUMBERS = {
    **{name: f"cr:{name.title()}" for name in ("int8", "int16", "int32", "int64", "float16", "float32", "float64")},
    **{f"uint{bits}": f"cr:UInt{bits}" for bits in (8, 16, 32, 64)},
}
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context of the specification."""


def render_croissant(contents: Contents, card: Mapping[str, Any], values: Mapping[str, Any], *, name: str) -> bytes:
    """Render the file as ASCII JSON; like the card, it holds no date.

    Args:
        contents: What is published.
        card: Metadata of the card, for licence and languages: those that are missing are missing here too.
        values: How the rows were chosen; see `larf_curate.publish.card.section_values`.
        name: Name of the dataset.
    """
    licenses, languages = _texts(card.get("license")), _texts(card.get("language"))
    counts = contents.kept_rows.counts
    record = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": f"{counts['published']} of {counts['rows']} rows, chosen with larf-curate {__version__}.",
        **({"license": [f"{LICENSES}#{item}" for item in licenses]} if licenses else {}),
        **({"inLanguage": languages} if languages else {}),
        "keywords": ["larf-curate", "safety", "fine-tuning"],
        "citeAs": " ".join(PAPERS),
        "distribution": [part for config in contents.configs for part in _distribution(contents, config)],
        "recordSet": [_record_set(contents, config) for config in contents.configs],
        **_responsible_ai(contents, values),
    }
    return (json.dumps(record, ensure_ascii=True, indent=1) + "\n").encode("ascii")


def _distribution(contents: Contents, config: str) -> list[dict[str, Any]]:
    """The files of a configuration, each with its digest, and the set of them that a record set reads."""
    shards = contents.configs[config]
    files = [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path,
            "contentUrl": path,
            "contentSize": f"{size(local)} B",
            "encodingFormat": "application/x-parquet",
            "sha256": digest(local),
        }
        for path, local in shards.files.items()
    ]
    together = {
        "@type": "cr:FileSet",
        "@id": f"{config}-files",
        "name": f"{config}-files",
        "encodingFormat": "application/x-parquet",
        "includes": f"{shards.pattern}.parquet",
    }
    return [*files, together]


def _record_set(contents: Contents, config: str) -> dict[str, Any]:
    shards = contents.configs[config]
    fields = [_field(config, column, feature) for column, feature in shards.features.items()]
    description = f"Split {shards.split}, {shards.rows} rows."
    return {"@type": "cr:RecordSet", "@id": config, "name": config, "description": description, "field": fields}


def _field(config: str, column: str, feature: Any, *keys: str) -> dict[str, Any]:  # noqa: ANN401  a feature, or a dict
    """A column, or the part of it that the keys lead to."""
    name = "/".join((column, *keys))
    source: dict[str, Any] = {"fileSet": {"@id": f"{config}-files"}, "extract": {"column": column}}
    if keys:
        source["transform"] = {"jsonPath": ".".join(keys)}
    found: dict[str, Any] = {"@type": "cr:Field", "@id": f"{config}/{name}", "name": name, "source": source}
    shape = []
    while isinstance(feature, List | LargeList):
        shape.append(str(getattr(feature, "length", -1)))
        feature = feature.feature
    if shape:
        found |= {"isArray": True, "arrayShape": ",".join(shape)}
    if isinstance(feature, dict):
        return found | {"subField": [_field(config, column, part, *keys, key) for key, part in feature.items()]}
    return found | {"dataType": _data_type(feature)}


def _data_type(feature: Any) -> str:  # noqa: ANN401  a feature
    if isinstance(feature, ClassLabel):
        return "cr:Int64"
    if not isinstance(feature, Value):  # media are stored as bytes, and other types as their JSON text
        return {"Image": "sc:ImageObject", "Audio": "sc:AudioObject", "Video": "sc:VideoObject"}.get(
            type(feature).__name__, "sc:Text"
        )
    if feature.dtype.startswith("timestamp"):
        return "sc:DateTime"
    return _KINDS.get(feature.dtype) or _NUMBERS.get(feature.dtype, "sc:Text")


def _responsible_ai(contents: Contents, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of RAI 1.0: what is known, and that the rest is not."""
    counts, reviewed = contents.kept_rows.counts, contents.kept_rows.is_reviewed
    review = (
        f"{values['reviewers']} people decided on {counts['reviewed']} of {counts['flagged']} flagged rows (merge rule "
        f"{values['merge']}): {counts['kept']} kept, {counts['edited']} edited, {counts['removed']} removed. The other "
        f"{counts['withheld']} are withheld."
        if reviewed
        else f"No person reviewed the {counts['flagged']} flagged rows, which are withheld."
    )
    texts = "with" if contents.has_removed_text else "without"
    return {
        "rai:dataCollection": f"The rows are those of {values['dataset']}. How these were collected, its own "
        "documentation says.",
        "rai:dataCollectionType": "Secondary data analysis",
        "rai:dataPreprocessingProtocol": f"Hidden states of {values['model']} (revision {values['revision']}), layers "
        f"{values['layers']}, were compared with those of references; rule {values['rule']}, threshold "
        f"{values['threshold']}. Row order is that of the source.",
        "rai:machineAnnotationTools": f"larf-curate, signal {values['signal']}",
        "rai:dataAnnotationProtocol": review,
        "rai:dataLimitations": "The score compares hidden states of one model with a set of reference answers. A low "
        "score does not prove that a row is safe, nobody read the rows below the threshold, and other models may "
        "behave differently.",
        "rai:dataBiases": "Rows were flagged by one model and one set of references, whose biases decide which rows "
        "people saw.",
        "rai:dataUseCases": "Fine-tuning of language models with fewer rows that degrade their safety. Not validated "
        "as a measure of harmfulness, for moderation of content, or for training without an evaluation of safety.",
        "rai:dataSocialImpact": f"The configuration removed lists the rows that are not published as data, {texts} "
        "their texts."
        if contents.removed
        else "All rows of the source are published as data.",
        "rai:personalSensitiveInformation": "Not examined by larf-curate: rows may have whatever those of the source "
        "have.",
        "rai:dataReleaseMaintenancePlan": "Each publication is a commit; earlier ones may contain rows that have been "
        "removed since. provenance.json records every step.",
    }


def _texts(value: object) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item is not None]
