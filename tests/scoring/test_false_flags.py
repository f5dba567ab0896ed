import numpy as np
import pytest
from datasets import Dataset

from larf_curate.errors import InputError
from larf_curate.scoring.selection import select
from tests.diagnosis.test_diagnose import scored_rows, states, synthetic

pytestmark = pytest.mark.usefixtures("own_caches")


def test_a_false_flag_rate_sets_the_threshold_by_held_out_neutral_rows():
    profile = synthetic(rows=199)
    alone = profile.held_out(sides=("neutral",)).neutral.mean(axis=1)
    assert alone.shape == (199,)
    highest = np.sort(alone)[::-1]
    scores = np.linspace(-3, 3, 500)
    data = scored_rows(profile, scores.tolist())
    for rate, place in ((0.005, 1), (0.01, 2), (0.05, 10), (0.5, 99)):
        want = int((scores >= np.round(highest[place - 1].astype(float), 6)).sum())
        for given in ({"profile": profile}, {"scored": data.manifest}):
            found = select(data.rows, max_false_flags=rate, **given)
            assert len(found.flagged) == want
            assert found.rule == {"max_false_flags": rate}


def test_the_rate_holds_for_ordinary_rows_never_seen():
    profile = synthetic(rows=199)
    fresh = states(4000, 77)
    scores = profile.fit()(fresh).mean(axis=1)
    data = Dataset.from_dict({"q": ["x"] * 4000, "larf_score": scores.tolist(), "larf_status": ["ok"] * 4000})
    share = len(select(data, max_false_flags=0.05, profile=profile).flagged) / 4000
    assert 0.02 < share < 0.08


def test_rates_that_the_neutral_rows_cannot_tell_are_refused():
    profile = synthetic(rows=20)
    data = scored_rows(profile, [0.5, 0.25]).rows
    with pytest.raises(InputError, match=r"20 neutral rows cannot resolve a false-flag rate below 0\.0476"):
        select(data, max_false_flags=0.01, profile=profile)
    with pytest.raises(InputError, match="needs the neutral rows"):
        select(data, max_false_flags=0.1)
    with pytest.raises(InputError, match="from 0 to 0.5"):
        select(data, max_false_flags=0.7, profile=profile)
