import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from numpy.testing import assert_allclose
from scipy.stats import rankdata
from sklearn.covariance import LedoitWolf
from transformers import AutoModelForCausalLM, AutoTokenizer

from larf_curate.cli import main
from larf_curate.data.references import ReferenceSet
from larf_curate.data.sources import open_source
from larf_curate.diagnosis import diagnose
from larf_curate.diagnosis.checkpoints import CheckpointAgreement, RankAgreement
from larf_curate.diagnosis.warnings import warnings_of
from larf_curate.errors import InputError, ProfileMismatchError, ReferenceSetError
from larf_curate.models.source import ModelSource
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import select
from larf_curate.stats import auroc
from tests.fixtures.models import NEUTRAL, PROFILE

pytestmark = pytest.mark.usefixtures("own_caches")
WIDTH = 16


def references(count=12, source="mine"):
    rows = ReferenceSet.load("builtin")
    return ReferenceSet(unsafe=rows.unsafe[:count], safe=rows.safe[:count], labels=rows.labels[:count], source=source)


def states(count, seed, *, unsafe=0.0, by_length=0.0, lengths=(20, 200), layers=2):
    """Random states: axis 0 says unsafe, axis 1 follows the logarithm of the length."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(*lengths, size=count).astype(np.float32)
    drawn = {p: rng.normal(size=(count, layers, WIDTH)).astype(np.float32) for p in ("last", "prompt", "mean")}
    for values in drawn.values():
        values[:, 1:] = values[:, :1] + 0.3 * values[:, 1:]  # layers that agree
        values[..., 0] += unsafe
        values[..., 1] += by_length * (np.log(tokens) - 4)[:, None]
    return drawn | {"length": np.repeat(tokens[:, None, None], layers, axis=1)}


def synthetic(signal="combined", *, refs=None, unsafe=4.0, by_length=0.0, unsafe_lengths=(20, 200), count=12, rows=60):
    refs = refs or references(count)
    return SafetyProfile(
        source=ModelSource(model_id="none", dtype="float32"),
        template_digest="0",
        layers=(3, 5),
        states={
            "unsafe": states(count, 1, unsafe=unsafe, by_length=by_length, lengths=unsafe_lengths),
            "safe": states(count, 2, by_length=by_length),
            "neutral": states(rows, 3, by_length=by_length),
        },
        references=dict(source=refs.source, digest=refs.digest, unsafe=count, safe=count, cut={}, labels=[]),
        neutral={"source": "rows", "digest": "0", "rows": rows},
        canary=refs.unsafe[0],
        signal=signal,
    )


def scored_rows(profile, scores, **columns):
    count = len(scores)
    rows = {
        "question": ["Q"] * count,
        "answer": ["A" * (3 + 5 * i) for i in range(count)],
        "larf_score": scores,
        "larf_layer_scores": [None if s is None else [s, -s] for s in scores],
        "larf_signals": [None if s is None else {"harmful": s, "erosion": -s} for s in scores],
        "larf_status": ["ok" if s is not None else "empty" for s in scores],
    }
    manifest = {"profile": profile.summary()}
    return Scored(rows=Dataset.from_dict(rows | columns), manifest=manifest)


def warned(diagnosis, *words):
    return [w for w in warnings_of(diagnosis) if all(word in w for word in words)]


def test_a_good_profile_is_found_good():
    found = diagnose(synthetic())
    assert found.separation["combined"].auroc_neutral > 0.97
    assert list(found.separation) == ["combined", "harmful", "erosion"]
    assert found.by_layer.keys() == {3, 5}
    assert not found.warnings
    assert "No warnings." in str(found)


def test_references_that_say_nothing_are_judged_as_chance_because_they_are_left_out():
    profile = synthetic("larf", unsafe=0.0)
    inside = profile.fit()
    sides = [inside(profile.states[side]).mean(axis=1) for side in ("unsafe", "safe")]
    assert auroc(*sides) > 0.75  # on rows it was made from
    found = diagnose(profile)
    assert found.separation["larf"].auroc_refusals < 0.7
    assert warned(found, "hardly separates")


def test_baselines_that_tell_references_from_refusals_better_than_the_score_are_named():
    found = diagnose(synthetic())
    own = replace(found.separation["combined"], auroc_neutral=1.0, auroc_refusals=0.834)
    weak = replace(own, auroc_neutral=0.9)

    def told(tfidf, length):
        baselines = {"tfidf": replace(weak, auroc_refusals=tfidf), "length": replace(weak, auroc_refusals=length)}
        return warned(replace(found, separation={"combined": own}, baselines=baselines), "from refusals better")

    (message,) = told(0.996, 0.6)
    assert message.startswith("A count of words alone (TF-IDF) tells the unsafe references from refusals better")
    assert "(AUROC 0.996 against 0.834)" in message
    (message,) = told(0.8, 0.1)
    assert message.startswith("Length alone tells")
    assert "(AUROC 0.900 with its sign reversed against 0.834)" in message
    assert not told(0.83, 0.2)
    assert not told(0.834, 0.5), "as well as the score is not better"


def test_a_score_that_follows_length_is_named_in_plain_words():
    confound = {"unsafe": 0.0, "by_length": 3.0, "unsafe_lengths": (150, 900)}
    found = diagnose(synthetic("larf", **confound))
    (message,) = warned(found, "follows length", "long rows score high")
    assert f"{found.length:+.2f}" in message
    assert found.length > 0.5
    ratio = found.tokens["unsafe"] / found.tokens["safe"]
    assert warned(found, f"{ratio:.1f} times as long as the safe ones")
    assert message in str(found)


def test_the_default_signal_takes_length_off_and_is_not_warned_of():
    found = diagnose(synthetic(by_length=3.0))
    assert abs(found.length) < 0.3
    assert not warned(found, "length")
    assert diagnose(synthetic("unsafe_similarity", unsafe=0.0, by_length=3.0, unsafe_lengths=(5, 20))).length < -0.4


def test_few_references_and_layers_that_disagree_are_named():
    few = synthetic(count=4, refs=references(4))
    assert warned(diagnose(few), "Only 4 unsafe references")
    good = diagnose(synthetic())
    assert not warned(good, "disagree")
    assert warned(replace(good, agreement=[[1.0, 0.1], [0.1, 1.0]]), "layers disagree", "0.10")
    assert warned(replace(good, float32=0.5), "In float32 the model ranks", "0.50")


def test_one_reference_cannot_be_judged():
    with pytest.raises(ReferenceSetError, match="at least 2"):
        diagnose(synthetic(count=1, refs=references(1)))


def test_texts_that_are_not_at_hand_are_said_to_be_missing():
    found = diagnose(synthetic())
    assert found.baselines == {}
    assert "references (mine) and neutral rows (rows) are not available" in found.notes[0]
    with pytest.raises(InputError, match="cannot compare with float32"):
        diagnose(synthetic(), float32=True)


def test_other_references_than_the_profiles_are_refused():
    with pytest.raises(ReferenceSetError, match="wanted the references that the profile was built from"):
        diagnose(synthetic(), references=references(5), neutral=NEUTRAL)


def test_scored_rows_are_compared_with_their_length_and_counted():
    profile = synthetic()
    scores = [*np.random.default_rng(0).normal(size=50).tolist(), None, None, float("nan")]
    found = diagnose(profile, scored_rows(profile, scores))
    assert found.scored.rows == 53
    assert_allclose(found.scored.unscorable, 3 / 53)
    want = np.corrcoef(rankdata(scores[:50]), np.arange(50))[0, 1]
    assert_allclose(found.scored.length, want)
    assert_allclose(found.scored.signal_lengths["erosion"], -want)
    assert_allclose(found.scored.agreement, [[1, -1], [-1, 1]])
    assert warned(found, "5.7% of the rows could not be scored")
    assert found.scored.drift is None


def test_rows_that_were_cut_are_counted_and_named():
    profile = synthetic()
    cut = scored_rows(profile, [0.5, 0.25, 0.75, 0.125], larf_status=["ok", "truncated", "ok", "truncated"])
    found = diagnose(profile, cut)
    assert found.scored.truncated == 0.5
    assert warned(found, "50.0% of the rows are longer", "without their middle", "--max-length")


def test_scores_that_rise_with_length_are_named():
    profile = synthetic()
    found = diagnose(profile, scored_rows(profile, np.linspace(1, 0, 30).tolist()))
    assert warned(found, "the scored rows", "short rows score high", "-1.00")


def test_a_handful_of_rows_gives_no_warning_of_length():
    profile = synthetic()
    found = diagnose(profile, scored_rows(profile, [3.0, 2.0, 1.0]))
    assert found.scored.length == pytest.approx(-1)
    assert not warned(found, "the scored rows")


def test_rows_are_read_by_the_columns_they_were_scored_with():
    profile = synthetic()
    rows = scored_rows(profile, np.linspace(1, 0, 30).tolist())
    renamed = rows.rows.rename_columns({"question": "frage", "answer": "antwort"})
    manifest = {**rows.manifest, "source": {"columns": {"user": "frage", "assistant": "antwort"}}}
    assert diagnose(profile, Scored(rows=renamed, manifest=manifest)).scored.length == pytest.approx(-1)
    assert diagnose(profile, Scored(rows=renamed, manifest=rows.manifest)).scored.length is None


def test_references_with_copies_among_them_are_diagnosed():
    profile = synthetic(count=12)
    kept = profile.states["unsafe"]["last"]
    kept[1:] = kept[0]
    rows = scored_rows(profile, np.linspace(1, 0, 30).tolist(), larf_state=[kept[0, 0].tolist()] * 30)
    found = diagnose(profile, rows)
    assert found.scored.coverage is not None
    assert not found.scored.beyond, "every row lies where a reference does"


def test_drift_is_distance_in_neutral_deviations_and_the_share_beyond_most_neutral_rows():
    profile = synthetic()
    neutral = profile.states["neutral"]["last"][:, 0].astype(float)
    rng = np.random.default_rng(5)
    rows = np.concatenate([rng.normal(size=(30, WIDTH)), rng.normal(size=(10, WIDTH)) * 9]).astype(np.float16)

    def distance(fitted, rows):
        return np.sqrt(fitted.mahalanobis(rows))

    order = np.arange(60)
    np.random.RandomState(0).shuffle(order)
    left_out = [distance(LedoitWolf().fit(np.delete(neutral, f, axis=0)), neutral[f]) for f in np.split(order, 5)]
    limit = np.percentile(np.concatenate(left_out), 99)
    far = distance(LedoitWolf().fit(neutral), rows.astype(float)) > limit
    shift = rows.astype(float).mean(0) - neutral.mean(0)
    found = diagnose(profile, scored_rows(profile, np.zeros(40).tolist(), larf_state=rows.tolist()))
    assert_allclose(found.scored.drift.far, far.mean())
    assert_allclose(found.scored.drift.shift, np.linalg.norm(shift) / np.sqrt(neutral.var(0).sum()), rtol=1e-3)
    assert far.mean() >= 0.25
    assert warned(found, "unlike the neutral rows")


def test_rows_without_a_score_or_scored_by_another_profile_are_refused():
    profile = synthetic()
    other = replace(profile, source=replace(profile.source, dtype="bfloat16"))
    scored = scored_rows(other, [0.5, 0.25])
    with pytest.raises(ProfileMismatchError, match="dtype bfloat16 against float32"):
        diagnose(profile, scored)
    with pytest.raises(InputError, match="score it first"):
        diagnose(profile, Dataset.from_dict({"question": ["a"], "answer": ["b"]}))
    with pytest.raises(ProfileMismatchError, match="another profile"):
        select(scored.rows, max_false_flags=0.1, profile=profile, scored=scored.manifest)


@pytest.mark.parametrize("column", ["larf_signals", "larf_layer_scores"])
@pytest.mark.parametrize("lost", ["row", "value", "nan"])
def test_rows_whose_figures_are_lost_are_left_out_and_told(column, lost, caplog):
    profile = synthetic()
    scores = [float(value) for value in range(20)]
    values = scored_rows(profile, scores).rows[column][:]
    first = values[0]
    damaged = {"row": None, "value": None, "nan": float("nan")}[lost]
    if lost != "row":
        damaged = [damaged, first[1]] if isinstance(first, list) else first | {"harmful": damaged}
    found = diagnose(profile, scored_rows(profile, scores, **{column: [damaged, *values[1:]]}))
    whole = diagnose(profile, scored_rows(profile, scores))
    assert "1 of 20 rows have a score but incomplete layer scores or signals" in caplog.text
    assert found.scored.signal_lengths == whole.scored.signal_lengths  # ranks of the other 19
    json.dumps(found.to_json(), allow_nan=False)


def test_states_that_are_no_numbers_are_left_out_and_other_widths_refused():
    profile = synthetic()
    states = profile.states["neutral"]["last"][:20, 0].tolist()
    broken = [[float("nan"), *states[0][1:]], [float("inf"), *states[1][1:]], None, *states[3:]]
    scores = [float(value) for value in range(20)]
    found = diagnose(profile, scored_rows(profile, scores, larf_state=broken)).scored
    want = diagnose(profile, scored_rows(profile, scores, larf_state=[None] * 3 + states[3:])).scored
    assert found.drift == want.drift
    assert found.beyond == want.beyond
    with pytest.raises(ProfileMismatchError, match=f"width {profile.width}"):
        diagnose(profile, scored_rows(profile, scores, larf_state=[state[:-1] for state in states]))


def test_rows_in_memory_with_scores_at_other_layers_are_refused():
    profile = synthetic()
    assert diagnose(profile, scored_rows(profile, [1, 2, 3])).scored.rows == 3, "whole numbers are numbers"
    rows = scored_rows(profile, [1.0, 2.0, 3.0], larf_layer_scores=[[1.0], [2.0], [3.0]]).rows
    with pytest.raises(ProfileMismatchError, match="2 layers"):
        diagnose(profile, rows)
    texts = scored_rows(profile, [1.0, 2.0], larf_score=["1", "2"]).rows
    with pytest.raises(InputError, match="is not numeric"):
        diagnose(profile, texts)


def test_no_rows_at_all_are_no_error():
    profile = synthetic()
    assert diagnose(profile, scored_rows(profile, [None, None])).scored.length is None


def test_the_json_holds_every_figure():
    profile = synthetic()
    found = diagnose(profile, scored_rows(profile, np.arange(9.0).tolist()))
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value["separation"]["combined"]["auroc_neutral"] == found.separation["combined"].auroc_neutral
    assert value["warnings"] == list(found.warnings)
    assert value["by_layer"].keys() == {"3", "5"}
    assert value["scored"]["length"] == pytest.approx(1)


@pytest.fixture(scope="module")
def built(tiny_llama):
    return SafetyProfile.build(tiny_llama, references(), layers=[3, 1], **PROFILE | {"dtype": "bfloat16"})


def test_ranks_are_compared_with_those_of_the_model_in_float32(built, tiny_llama):
    found = diagnose(built, references=references(), neutral=NEUTRAL, float32=True, device="cpu")
    exact = SafetyProfile.build(tiny_llama, references(), layers=[3, 1], **PROFILE)
    scores = [p.fit()(p.states["neutral"]).mean(axis=1) for p in (built, exact)]
    assert_allclose(found.float32, np.corrcoef(*map(rankdata, scores))[0, 1], atol=1e-6)
    assert found.baselines.keys() == {"length", "tfidf"}
    assert found.baselines["tfidf"].auroc_neutral > 0.9
    assert warned(found, "count of words alone (TF-IDF) separates")
    tfidf, own = (metrics.auroc_refusals for metrics in (found.baselines["tfidf"], found.separation[found.signal]))
    assert tfidf > own, "refusals have a wording of their own, which a random model cannot read"
    assert warned(found, "TF-IDF) tells the unsafe references from refusals", f"{tfidf:.3f} against {own:.3f}")


def test_another_model_in_float32_is_refused(built, tiny_qwen2):
    with pytest.raises(ProfileMismatchError, match="not the model"):
        diagnose(built, references=references(), neutral=NEUTRAL, float32=True, model=tiny_qwen2, device="cpu")


def test_the_command_prints_text_and_json_and_exits_0_with_warnings(built, tmp_path):
    built.save_pretrained(tmp_path / "profile")
    run = CliRunner().invoke(main, ["diagnose", str(tmp_path / "profile")])
    assert run.exit_code == 0
    assert "AUROC, neutral" in run.output
    assert "Note: The texts" in run.output
    assert run.output.count("Warning: ") == len(diagnose(built).warnings) > 0
    (tmp_path / "neutral.jsonl").write_text("\n".join(map(json.dumps, NEUTRAL)))
    pairs = [
        {"prompt": u["prompt"], "unsafe": u["response"], "safe": s["response"]}
        for u, s in zip(references().unsafe, references().safe, strict=True)
    ]
    (tmp_path / "refs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    texts = ["--references", str(tmp_path / "refs.jsonl"), "--neutral", str(tmp_path / "neutral.jsonl")]
    run = CliRunner().invoke(main, ["diagnose", str(tmp_path / "profile"), *texts, "--json"])
    assert run.exit_code == 0
    assert json.loads(run.stdout)["baselines"].keys() == {"length", "tfidf"}
    run = CliRunner().invoke(main, ["diagnose", str(tmp_path / "profile"), "--unsafe", "x"])
    assert run.exit_code == 2


def test_rows_that_the_scorer_wrote_are_diagnosed(built):
    rows = Dataset.from_list([{"question": f"Say {'x' * n}", "answer": f"{'y ' * n}."} for n in range(1, 13)])
    scored = rows.map(LarfScorer(built, device="cpu", keep_states=True), batched=True)
    found = diagnose(built, scored)
    want = np.corrcoef(rankdata(scored["larf_score"]), np.arange(12))[0, 1]
    assert_allclose(found.scored.length, want)
    assert found.scored.drift.shift > 0
    assert len(found.scored.agreement) == 2


def test_clusters_of_rows_without_a_reference_are_named_by_their_rows():
    profile = synthetic()
    near, far = profile.states["unsafe"]["last"][:, 0], profile.states["unsafe"]["last"][:, 0] + 500
    count = len(near)
    rows = scored_rows(profile, [float(i) for i in range(2 * count)], larf_state=np.concatenate([near, far]).tolist())
    found = diagnose(profile, rows)
    assert found.scored.beyond
    for cluster in found.scored.beyond:
        assert all(len(text) == 60 for text in cluster.texts), "the far rows are the later ones, which are long"
    assert "without an unsafe reference" in str(found)
    assert 0 < found.scored.coverage.concepts <= 1
    json.dumps(found.to_json())
    bare = diagnose(profile, scored_rows(profile, [1.0, 2.0, 3.0]))
    assert bare.scored.coverage is None
    assert not bare.scored.beyond


def rounded_copy(folder, to, bits):
    """A copy of a model whose matrices are rounded to a few bits, symmetric for each output, kept in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    highest = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for weight in (p for p in model.model.layers.parameters() if p.ndim == 2):
            step = weight.abs().amax(dim=1, keepdim=True) / highest
            weight.copy_((weight / step).round() * step)
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return str(to)


def test_ranks_are_compared_with_those_of_a_quantised_checkpoint(tiny_llama, tmp_path):
    rows = [
        {"question": f"How do I {'bake ' * (i % 5)}{i}?", "answer": f"Take {i * 7} {'cups ' * (i % 3)}."}
        for i in range(45)
    ]
    options = PROFILE | {"layers": [3, 1], "signal": "combined"}
    profile = SafetyProfile.build(tiny_llama, references(), **options)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_source(open_source(str(data)), LarfScorer(profile, device="cpu"), tmp_path / "scored")
    other = rounded_copy(tiny_llama, tmp_path / "4bit", 3)
    given = {"references": references(), "neutral": NEUTRAL, "device": "cpu"}
    found = diagnose(profile, tmp_path / "scored", against=other, **given)
    quantised = SafetyProfile.build(other, references(), **options)
    sides = [LarfScorer(p, device="cpu").score(rows) for p in (profile, quantised)]
    assert found.against.model == "4bit"
    assert found.against.rows == 45
    assert list(found.against.signals) == ["larf_score", *sides[0][0].signals]
    for name, agreement in found.against.signals.items():
        a, b = ([s.score if name == "larf_score" else s.signals[name] for s in side] for side in sides)
        assert_allclose(agreement.correlation, np.corrcoef(rankdata(a), rankdata(b))[0, 1], atol=1e-6)
        top = [set(sorted(range(45), key=lambda i: -values[i])[:5]) for values in (a, b)]
        assert agreement.top_tenth == len(top[0] & top[1]) / 5
    assert found.against.signals["larf_score"].correlation < 0.999
    assert "Agreement with 4bit on 45 scored rows" in str(found)
    assert found.to_json()["against"]["signals"]["harmful"].keys() == {"correlation", "top_tenth"}
    same = diagnose(profile, tmp_path / "scored", against=str(tiny_llama), **given).against
    assert_allclose([[a.correlation, a.top_tenth] for a in same.signals.values()], 1)
    with pytest.raises(InputError, match="wanted a scored folder"):
        diagnose(profile, against=other, **given)


def test_a_checkpoint_that_ranks_rows_otherwise_is_warned_of():
    against = CheckpointAgreement(
        model="4bit", rows=9, signals={"larf_score": RankAgreement(correlation=0.5, top_tenth=0.1)}
    )
    assert warned(replace(diagnose(synthetic()), against=against), "4bit", "larf_score", "0.50")
