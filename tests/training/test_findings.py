import numpy as np
import pytest

from larf_curate.training import findings


def test_an_arm_that_loses_nothing_or_all_still_has_an_interval():
    finding = findings.ArmResult(name="x", results=({},), refused=np.ones((3, 20)))
    assert finding.interval == pytest.approx((0.025 ** (1 / 20), 1.0))


def test_a_name_of_an_arm_is_no_path_and_no_formula(tmp_path):
    assert findings.run_folder(tmp_path, "top:a/../../b+sft", 1).parent.parent == tmp_path
    base = findings.ArmResult(name="base", results=({"harmful": {"mean": 1.0}},), refused=np.ones((1, 3)))
    odd = findings.ArmResult(name=r"top:$\foo{$", results=base.results, refused=base.refused)
    findings.ExperimentResults(base=base, arms=(odd,)).plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_losses_are_measured_against_the_start_and_against_random():
    def finding(name, rates):
        refused = np.array([[1.0] * round(10 * r) + [0.0] * (10 - round(10 * r)) for r in rates])
        results = tuple({"harmful": {"mean": r}, "rows": 4, "tokens": 40} for r in rates)
        return findings.ArmResult(name=name, results=results, refused=refused)

    found = findings.ExperimentResults(
        base=finding("base", [0.9]), arms=(finding("top:larf_score+sft", [0.3, 0.5]), finding("random+sft", [0.7, 0.7]))
    )
    base, top, random = found.table()
    assert (base["lost"], top["lost"], random["lost"]) == pytest.approx((0, 0.5, 0.2))
    assert top["lost_against_random"] == pytest.approx(2.5)
    assert top["interval"][0] < 0.3 < 0.5 < top["interval"][1]
    assert top["over_refusal"] is None
