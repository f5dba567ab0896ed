import json

from larf_curate.data.references import ReferenceSet
from larf_curate.scoring.exemplar_texts import exemplar_texts, safe_texts


def described(references, **other):
    return {"profile": {"references": {"source": references.source, "digest": references.digest} | other}}


def test_the_requests_of_the_references_go_by_exemplar_id():
    references = ReferenceSet.load("builtin")
    texts = exemplar_texts(described(references))
    assert list(texts) == [f"reference-{index}" for index in range(len(references))]
    assert texts["reference-3"] == references.unsafe[3]["prompt"]


def test_references_in_a_file_are_read_while_they_are_the_same(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "unsafe": "Sure.", "safe": "No."} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    references = ReferenceSet.load(path)
    assert exemplar_texts(described(references)) == {f"reference-{i}": f"p{i}" for i in range(3)}
    assert safe_texts(described(references)) == [f"p{i} → No." for i in range(3)]
    assert exemplar_texts(described(references, digest="other")) == {}
    assert safe_texts(described(references, digest="other")) == []
    path.write_text("{")
    assert exemplar_texts(described(references)) == {}
    path.unlink()
    assert exemplar_texts(described(references)) == {}
    assert exemplar_texts({}) == {}
