"""Licence, languages and source of a publication: carried over from the source's card, never guessed or overwritten."""

import pytest
import yaml
from click.testing import CliRunner

from larf_curate.cli.publish import publish as publish_command
from larf_curate.publish import publish
from tests.fixtures.decisions_folder import scored_record, selection_record, write_decisions

SOURCE, REPO = "org/original", "org/curated"
NO_LICENSE = "the card states no licence, since none of the source is known: add license to its metadata"


def decisions(tmp_path, **source):
    selection = selection_record(12, 5, scored=scored_record(12, source=source))
    return write_decisions(tmp_path / "decisions", selection=selection)


def from_hub(hub, tmp_path, card: str | None, **changes):
    """Decisions on rows of a dataset on the Hub, scored at the commit with this card."""
    hub.create(SOURCE)
    oid = hub.commit(SOURCE, {"README.md": card} if card is not None else {"x.txt": "x"})
    hub.commit(SOURCE, {"README.md": "---\nlicense: unknown\n---\n"})  # a later commit, which was not scored
    return decisions(tmp_path, **{"dataset": SOURCE, "config": None, "split": "train", "revision": oid} | changes)


def sent(hub, folder):
    done = publish(folder, REPO, endpoint=hub.endpoint, token=hub.token)
    return done, yaml.safe_load(done.card.split("---\n")[1])


def test_licence_languages_and_source_are_carried_over(hub, tmp_path):
    theirs = "---\nlicense: other\nlicense_name: x-1\nlicense_link: LICENSE\nlanguage: [de, en]\ntags: [a]\n---\n# T\n"
    done, data = sent(hub, from_hub(hub, tmp_path, theirs))
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "x-1", "LICENSE")
    assert (data["language"], data["source_datasets"]) == (["de", "en"], [SOURCE])
    assert "a" not in data["tags"]
    assert done.notes == ()
    assert "| licence | other |" in done.card
    for paper in ("https://arxiv.org/abs/2507.18631", "https://arxiv.org/abs/2505.16737"):
        assert paper in done.card
    assert publish(tmp_path / "decisions", REPO, endpoint=hub.endpoint, token=hub.token).changed is False


@pytest.mark.parametrize("card", [None, "# No metadata\n", "---\nlanguage: en\n---\n"])
def test_a_licence_that_is_missing_is_said_and_not_guessed(hub, tmp_path, card):
    done, data = sent(hub, from_hub(hub, tmp_path, card))
    assert "license" not in data
    assert done.notes == (NO_LICENSE,)
    assert "| licence | not known |" in done.card
    assert data["source_datasets"] == [SOURCE]


def test_a_source_of_files_has_no_licence(hub, tmp_path, monkeypatch):
    folder = decisions(tmp_path, dataset="rows", files=1, sha256="0" * 64)
    done, data = sent(hub, folder)
    assert done.notes == (NO_LICENSE,)
    assert "source_datasets" not in data
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert f"note: {NO_LICENSE}" in CliRunner().invoke(publish_command, [str(folder), "--to", REPO]).output


@pytest.mark.parametrize(
    "card", ["---\nlicense: 'My <b> License'\n---\n", "---\nlicense: {a: 1}\nlanguage: [12]\n---\n"]
)
def test_values_that_the_hub_would_refuse_are_not_carried_over(hub, tmp_path, card):
    done, data = sent(hub, from_hub(hub, tmp_path, card))
    assert "license" not in data
    assert done.notes[0].startswith(f"licence and languages of {SOURCE} could not all be read: not a value")


def test_a_card_that_cannot_be_read_is_no_obstacle_and_said(hub, tmp_path):
    folder = from_hub(hub, tmp_path, "---\nlicense: mit\n---\n")
    hub.fail_next(403, match=f"{SOURCE}/resolve")
    done, data = sent(hub, folder)
    assert "license" not in data
    assert done.notes[0].startswith(f"licence and languages of {SOURCE} could not all be read")
    done, data = sent(hub, folder)  # and now it can
    assert (data["license"], done.notes) == ("mit", ())


def test_the_licence_that_a_card_states_stays_and_a_difference_is_said(hub, tmp_path):
    hub.create(REPO)
    theirs = "---\nlicense: cc-by-4.0\nlanguage: [fr]\nsource_datasets: [other/one]\n---\n# Ours\n"
    hub.commit(REPO, {"README.md": theirs})
    source = "---\nlicense: mit\nlicense_link: x\nlanguage: [de]\n---\n"
    done, data = sent(hub, from_hub(hub, tmp_path, source))
    assert (data["license"], data["language"]) == ("cc-by-4.0", ["fr"])
    assert "license_link" not in data
    assert data["source_datasets"] == ["other/one", SOURCE]
    assert done.notes == (f"the card states the licence cc-by-4.0, that of {SOURCE} states mit",)
    assert "# Ours" in done.card


def test_the_token_is_only_sent_to_the_hub_and_a_folder_gets_the_same_card(hub, tmp_path):
    folder = from_hub(hub, tmp_path, "---\nlicense: mit\n---\n")
    done, _ = sent(hub, folder)
    assert publish(folder, tmp_path / "curated").card == done.card
    assert hub.token not in done.card
