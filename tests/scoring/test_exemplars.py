import json
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from larf_curate.conversation.chat_template import Renderer
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError, MissingExtraError
from larf_curate.models.loading import load_reader
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.coverage import ConceptSpace
from larf_curate.scoring.exemplars import CONFIG_FILE, STATES_FILE, ExemplarIndex
from tests.fixtures.models import PROFILE
from tests.models.test_hidden_states import full_states

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def refs():
    whole = ReferenceSet.load("builtin")
    return ReferenceSet(unsafe=whole.unsafe[:4], safe=whole.safe[:4], labels=whole.labels[:4], source="four")


@pytest.fixture(scope="module")
def profile(tiny_llama, refs):
    return SafetyProfile.build(tiny_llama, refs, layers=[2, 0], **PROFILE)


def random_states(count, seed=0):
    scale = np.random.default_rng(seed + 99).uniform(0.1, 50, size=(count, 1))
    return (np.random.default_rng(seed).normal(size=(count, 16)) * scale).astype(np.float32)


def index_of(count=50):
    return ExemplarIndex(
        states=random_states(count),
        ids=tuple(f"e{i}" for i in range(count)),
        labels=tuple(f"l{i % 5}" for i in range(count)),
        layer=2,
    )


def cosines(queries, states):
    queries, states = queries.astype(float), states.astype(float)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(states, axis=1)[None]
    return queries @ states.T / lengths


def test_a_smaller_index_holds_what_covers_most(profile):
    own = profile.states["unsafe"]["last"][:, 0]
    index = ExemplarIndex(
        states=np.concatenate([own[:1], own[:1], own]), ids=tuple("abcdef"), labels=tuple("uvwxyz"), layer=2
    )
    few = index.covering(3, profile)
    assert len(few.ids) == 3
    assert len({"a", "b", "c"} & set(few.ids)) <= 1, "copies add nothing"
    for row, name, label in zip(few.states, few.ids, few.labels, strict=True):
        assert_array_equal(row, index.states["abcdef".index(name)])
        assert label == "uvwxyz"["abcdef".index(name)]
    space = ConceptSpace(np.concatenate([profile.states[side]["last"][:, 0] for side in ("unsafe", "safe", "neutral")]))
    alone = [np.mean(list(asdict(space.coverage(state[None])).values())) for state in index.states]
    assert alone["abcdef".index(few.ids[0])] == max(alone)
    assert len(index.covering(99, profile).ids) <= 4
    for count, other in ((0, profile), (2, replace(profile, layers=(0, 2)))):
        with pytest.raises(InputError, match=r"at least 1 exemplar and a profile of first layer and width \(2, 32\)"):
            index.covering(count, other)


@pytest.mark.parametrize("k", [1, 7, 50, 80])
def test_neighbors_are_those_of_numpy_nearest_first(k):
    index, queries = index_of(), random_states(20, seed=3)
    want = cosines(queries, index.states)
    for row, found in zip(want, index.search(queries, k), strict=True):
        best = np.argsort(-row)[:k]
        assert [n.id for n in found] == [f"e{i}" for i in best]
        assert [n.label for n in found] == [f"l{i % 5}" for i in best]
        assert_allclose([n.cosine for n in found], row[best], atol=1e-6)


def test_a_centre_is_taken_off_both_sides():
    far = np.full(16, 1000, np.float32)
    index, queries = index_of(), random_states(20, seed=3)
    moved = replace(index, states=index.states + far, centre=far)
    want = cosines(queries, index.states)
    for row, found in zip(want, moved.search(queries + far, 3), strict=True):
        best = np.argsort(-row)[:3]
        assert [n.id for n in found] == [f"e{i}" for i in best]
        assert_allclose([n.cosine for n in found], row[best], atol=1e-3)
    assert replace(moved, centre=None).search(queries + far, 1)[0][0].cosine > 0.99
    with pytest.raises(InputError, match=r"centre of shape \(16,\), got \(8,\)"):
        replace(index, centre=far[:8])


def test_an_index_of_a_profile_is_centred_by_its_neutral_rows(profile, refs, tmp_path):
    index = ExemplarIndex.of_profile(profile)
    neutral = profile.states["neutral"]["last"][:, 0]
    assert_allclose(index.centre, neutral.mean(axis=0), rtol=1e-5)
    assert_allclose(ExemplarIndex.build(profile, refs).centre, index.centre)
    index.save(tmp_path)
    again = ExemplarIndex.load(tmp_path)
    assert_array_equal(again.centre, index.centre)
    assert again.digest == index.digest
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["centred"] is True
    rows = profile.states["safe"]["last"][:, 0]
    want = cosines(rows - index.centre, index.states - index.centre).max(axis=1)
    assert_allclose([found.cosine for (found,) in again.search(rows, 1)], want, atol=1e-4)


def test_an_exemplar_finds_itself_with_cosine_one():
    index = index_of()
    for i, (found,) in enumerate(index.search(index.states * 3, 1)):
        assert found.id == f"e{i}"
        assert found.cosine == pytest.approx(1, abs=1e-6)


def test_no_states_have_no_neighbors():
    assert index_of().search(random_states(0), 3) == []


@pytest.mark.parametrize(
    ("states", "k", "message"),
    [(random_states(2)[:, :8], 1, r"\(n, 16\)"), (random_states(2)[0], 1, r"\(n, 16\)"), (random_states(2), 0, "k=0")],
)
def test_wrong_shapes_and_numbers_are_refused(states, k, message):
    with pytest.raises(InputError, match=message):
        index_of().search(states, k)


def test_sides_of_unequal_length_are_refused():
    with pytest.raises(InputError, match="as many states as ids"):
        ExemplarIndex(states=random_states(3), ids=("a",), labels=("b",), layer=0)
    with pytest.raises(InputError, match="at least one"):
        ExemplarIndex(states=random_states(0), ids=(), labels=(), layer=0)


def test_a_saved_index_searches_as_before(tmp_path):
    index = index_of()
    index.save(tmp_path / "index")
    again = ExemplarIndex.load(tmp_path / "index")
    assert_array_equal(again.states, index.states)
    assert (again.ids, again.labels, again.layer, again.digest) == (index.ids, index.labels, index.layer, index.digest)
    assert again.search(random_states(5, seed=1), 3) == index.search(random_states(5, seed=1), 3)


def test_every_part_changes_the_digest():
    index = index_of()
    others = [
        replace(index, states=index.states + 1),
        replace(index, labels=("x",) * 50),
        replace(index, ids=tuple(reversed(index.ids))),
        replace(index, layer=3),
        replace(index, centre=index.states[0]),
    ]
    assert len({index.digest, *(other.digest for other in others)}) == 6


@pytest.mark.parametrize("file", [CONFIG_FILE, STATES_FILE])
def test_a_damaged_index_is_refused(tmp_path, file):
    index_of().save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:40])
    with pytest.raises(InputError, match="damaged|not valid JSON"):
        ExemplarIndex.load(tmp_path)


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        ExemplarIndex.load(tmp_path)


def test_building_takes_the_states_of_the_profile_at_its_first_layer(profile, refs):
    index = ExemplarIndex.build(profile, refs)
    assert_array_equal(index.states, profile.states["unsafe"]["last"][:, 0])
    assert (index.layer, index.labels) == (2, refs.labels)


def test_building_from_other_references_reads_their_states(profile, tiny_llama):
    whole = ReferenceSet.load("builtin")
    others = ReferenceSet(unsafe=whole.unsafe[7:9], safe=whole.safe[7:9], labels=whole.labels[7:9], source="two")
    index = ExemplarIndex.build(profile, others)
    reader = load_reader(profile.source, (2, 0), device="cpu")
    for state, item in zip(index.states, Renderer(reader.tokenizer, 4096)(others.unsafe), strict=True):
        assert_allclose(state, full_states(tiny_llama, item.tokens.ids)[2, -1], atol=1e-4)


def test_scored_rows_are_added_by_their_states_without_the_model():
    index = index_of()
    new = random_states(2, seed=8)
    rows = [
        {"larf_state": new[0].tolist(), "larf_row_id": "abc", "category": "weapons"},
        {"larf_state": new[1].tolist(), "category": None},
    ]
    more = index.add(rows, label="reviewed")
    assert len(index.ids) == 50, "the old index stays as it was"
    assert more.ids[-2:] == ("abc", "added-51")
    assert more.labels[-2:] == ("weapons", "reviewed")
    assert [found.id for (found,) in more.search(new, 1)] == ["abc", "added-51"]


def test_rows_without_states_are_read_with_the_profiles_model(profile, refs):
    index = ExemplarIndex.build(profile, refs)
    more = index.add(refs.safe[:1], profile=profile)
    assert_allclose(more.states[-1], profile.states["safe"]["last"][0, 0], atol=1e-4)


def test_adding_what_does_not_suit_is_refused(profile):
    index = index_of()
    assert index.add([]) is index
    with pytest.raises(InputError, match="larf_state"):
        index.add([{"question": "Q", "answer": "A"}])
    with pytest.raises(InputError, match="width 16"):
        index.add([{"larf_state": [1.0, 2.0]}])
    with pytest.raises(InputError, match="width 16"):
        index.add([{"larf_state": [0.5] * 16}, {"larf_state": [1.0, 2.0]}])
    for broken in (np.nan, np.inf):
        with pytest.raises(InputError, match="finite"):
            index.add([{"larf_state": [broken] * 16}])
    with pytest.raises(InputError, match="width"):
        replace(index, layer=profile.layers[0]).covering(3, profile)
    with pytest.raises(InputError, match="first layer is 3"):
        replace(index, layer=3).add([{"question": "Q", "answer": "A"}], profile=profile)


def test_without_faiss_the_search_names_both_builds(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r'pip install "larf-curate\[cpu\]".*"larf-curate\[gpu\]"'):
        index_of().search(random_states(1), 1)
