import pytest

from larf_curate.errors import InputError, ProfileMismatchError
from larf_curate.manifests import (
    DECISIONS,
    KINDS,
    SCORED,
    SELECTION,
    VERSION,
    check_folder,
    check_manifest,
    check_profile,
)
from larf_curate.records import seal

SELECTED = {
    "kind": "selection",
    "version": VERSION,
    "rule": {"top_k": 3},
    "threshold": None,
    "counts": {"rows": 5},
    "status": {"ok": 5},
    "ids": {"kept": "k", "flagged": "f"},
    "shards": [],
    "scored": {},
}


def test_a_whole_manifest_is_given_back_and_one_that_was_changed_is_refused():
    assert check_manifest(seal(SELECTED), SELECTION, "sel") == seal(SELECTED)
    with pytest.raises(InputError, match="sel/selection.json was changed after it was written: write it again"):
        check_manifest(seal(SELECTED) | {"threshold": 2}, SELECTION, "sel")


def test_a_change_of_the_manifest_before_is_found_too():
    inner = seal(SELECTED) | {"threshold": 2}
    outer = {"kind": "decisions", "version": VERSION, "merge": "majority", "counts": {}, "shards": []}
    with pytest.raises(InputError, match="was changed after it was written"):
        check_manifest(seal(outer | {"selection": inner}), DECISIONS, "dec")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            [],
            "wanted a selection in sel, got .. as kind in selection.json: give the folder that larf-curate select",
        ),
        ({}, "wanted a selection in sel, got None as kind in selection.json"),
        (SELECTED | {"kind": "scored"}, "wanted a selection in sel, got 'scored' as kind in selection.json"),
        (SELECTED | {"version": 1}, "of version 1, wanted version 2"),
        (SELECTED | {"threshold": "high"}, "sel/selection.json has \"high\" as 'threshold', wanted a valid number"),
        (seal(SELECTED | {"more": 1}), "sel/selection.json has the unknown field 'more'"),
        ({k: v for k, v in SELECTED.items() if k != "rule"}, "has nothing as 'rule'"),
    ],
)
def test_what_is_no_such_manifest_is_refused_by_name(value, said):
    with pytest.raises(InputError, match=said):
        check_manifest(value, SELECTION, "sel")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_results_of_another_kind_are_never_overwritten(tmp_path, kind):
    check_folder(tmp_path / "new", kind)
    (tmp_path / kind.file).write_text("{}")
    check_folder(tmp_path, kind)
    for other in {SCORED, SELECTION, DECISIONS} - {kind}:
        with pytest.raises(InputError, match=f"holds {kind.content}, which would be overwritten"):
            check_folder(tmp_path, other)


class Profile:
    digest = "ab"

    def summary(self):
        return {"digest": "ab", "model": "m", "revision": None, "dtype": "float32", "layers": [3], "signal": "larf"}


@pytest.mark.parametrize("recorded", [None, {}, {"layers": [3]}, {"digest": "ab"}])
def test_the_profile_that_scored_is_accepted_and_so_is_any_where_none_is_recorded(recorded):
    check_profile(Profile(), recorded)


def test_another_profile_is_refused_with_what_differs():
    other = Profile().summary() | {"digest": "cd", "layers": [4]}
    with pytest.raises(ProfileMismatchError, match=r"\(layers \[4\] against \[3\]\)"):
        check_profile(Profile(), other)
    with pytest.raises(ProfileMismatchError, match="other reference states"):
        check_profile(Profile(), Profile().summary() | {"digest": "cd"})
