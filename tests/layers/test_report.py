import json
import math

import matplotlib.image
import pytest

from larf_curate.errors import InputError
from larf_curate.layers import LayerReport


def report(**changes):
    values = {
        "method": "sweep",
        "model": "tiny",
        "layers": (2, 1),
        "scores": (0.9, 0.3, 0.5, -0.2, 0.0),
        "low": (0.8, 0.1, 0.2, -0.4, -0.1),
        "high": (1.0, 0.5, 0.8, -0.1, 0.1),
        "ranking": (2, 1, 4, 3),
        "broken": (0,),
        "neutral_loss": (4.0, 0.1, 0.2, None, 0.0),
        "alphas": (0.7, 1.3),
        "curves": ((0.0, 0.9), (0.2, 0.5), (0.2, 0.7), (0.5, 0.3), (0.4, 0.4)),
        "baseline": 0.4,
        "measures": {"auroc": (0.5, 0.6, 0.7, 0.8, 0.9)},
        "prompts": 110,
        "refused": 44,
        "scaled": ("self_attn.q_proj.weight",),
        "seconds": 3.5,
    }
    return LayerReport(**{**values, **changes})


def test_a_report_is_the_same_after_saving_and_loading_from_a_folder_or_a_file(tmp_path):
    for path in (tmp_path / "profile", tmp_path / "other.json"):
        report().save(path)
        assert LayerReport.load(path) == report()
    assert (tmp_path / "profile" / "layers.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "not a layer report"),
        ("[]", "not a layer report"),
        ('{"kind": "layers"}', "not a layer report of format 1"),
        ('{"kind": "layers", "format": 1, "x": 2}', "has nothing as 'method': make it again"),
        ("x", "not valid JSON"),
    ],
)
def test_files_that_are_no_report_are_refused(tmp_path, content, said):
    (tmp_path / "layers.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        LayerReport.load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"measures": []},
        {"scores": None},
        {"broken": None},
        {"low": ["x"] * 5},
        {"scores": [math.nan] * 5},
        {"high": [1.0]},
    ],
)
def test_a_damaged_report_is_refused(tmp_path, damage):
    file = report().save(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **damage}), encoding="utf-8")
    with pytest.raises(InputError, match="make it again with larf-curate layers|not valid JSON"):
        LayerReport.load(tmp_path)


def test_the_table_is_in_order_of_rank_with_broken_blocks_last_and_the_authors_layer_numbers():
    table = report().to_pandas()
    assert table.index.tolist() == [2, 1, 4, 3, 0]
    assert table.loc[2, "larf_hidden_state"] == 3
    assert table["recommended"].tolist() == [True, True, False, False, False]
    assert table.loc[1, ["alpha_0.7", "alpha_1.3", "auroc"]].tolist() == [0.2, 0.5, 0.6]
    assert math.isnan(table.loc[3, "neutral_loss"])


def test_agreement_leaves_out_blocks_that_are_broken_in_either_report():
    other = report(scores=(0.0, 0.9, 0.3, 0.1, 0.5), ranking=(1, 4, 2, 3, 0), broken=())
    found = report().agreement(other)
    assert found.spearman == pytest.approx(0.4)  # ranks 3 4 1 2 against 4 2 1 3
    assert found.clear == 3
    assert found.spearman_clear == pytest.approx(0.5)  # blocks 2, 1, 3
    assert (found.top3, found.top5) == (3, 4)


def test_reports_of_different_models_do_not_compare():
    with pytest.raises(InputError, match="blocks"):
        report().agreement(report(scores=(1.0,)))


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_the_plot_is_an_image_of_every_kind_of_report(tmp_path, name):
    for index, item in enumerate((report(), report(method="gradient", alphas=(), curves=(), layers=()))):
        path = item.plot(tmp_path / str(index) / name)
        if path.suffix == ".png":
            assert matplotlib.image.imread(path).std() > 0.05
        else:
            assert ("recommended" in path.read_text(encoding="utf-8")) == bool(item.layers)
    with pytest.raises(InputError, match="ending"):
        report().plot(tmp_path / "plot.txt")
