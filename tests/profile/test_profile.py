import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime

import numpy as np
import peft
import pytest
import transformers
from huggingface_hub import ModelCard
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file, save_file

from larf_curate import LarfScorer
from larf_curate.conversation import templates
from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.templates import template_digest
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError, ModelError, ProfileError, ProfileMismatchError, ReferenceSetError
from larf_curate.models.loading import forget_reader, load_reader
from larf_curate.profile import CONFIG_FILE, STATES_FILE, SafetyProfile
from larf_curate.profile.card import merge_profile_card
from larf_curate.profile.matching import match_lengths
from larf_curate.scoring.explanation import explain
from larf_curate.states import POSITIONS
from tests.fixtures.models import NEUTRAL, PROFILE, save_tiny
from tests.fixtures.tiny import CHATML, bpe_tokenizer
from tests.models.test_hidden_states import full_states

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def refs():
    whole = ReferenceSet.load("builtin")
    return ReferenceSet(unsafe=whole.unsafe[:4], safe=whole.safe[:4], labels=whole.labels[:4], source="four")


@pytest.fixture(scope="module")
def profile(tiny_llama, refs):
    return SafetyProfile.build(tiny_llama, refs, layers=[3, 1], **PROFILE)


@pytest.fixture
def saved(profile, tmp_path):
    profile.save_pretrained(tmp_path / "profile")
    return tmp_path / "profile"


def edit(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


def test_reference_states_are_the_full_models_own(tiny_llama, refs, profile):
    reader = load_reader(profile.source, (3, 1), device="cpu")
    for side, rows in (("unsafe", refs.unsafe), ("safe", refs.safe)):
        for index, item in enumerate(Renderer(reader.tokenizer, 4096)(rows)):
            want = full_states(tiny_llama, item.tokens.ids)[[3, 1]]
            (turn,) = item.tokens.turns
            assert_allclose(profile.states[side]["last"][index], want[:, -1], atol=1e-4)
            assert_allclose(profile.states[side]["prompt"][index], want[:, turn.start - 1], atol=1e-4)
            assert_allclose(profile.states[side]["mean"][index], want[:, turn.start :].mean(axis=1), atol=1e-4)


def test_references_of_several_turns_count_with_their_last_one(tiny_llama, refs):
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Two."},
    ]
    two = replace(refs, unsafe=({"messages": messages},), safe=refs.safe[:1], labels=("x",))
    profile = SafetyProfile.build(tiny_llama, two, layers=[1], **PROFILE)
    reader = load_reader(profile.source, (1,), device="cpu")
    ids = reader.tokenizer.apply_chat_template(messages, return_dict=False)
    assert profile.states["unsafe"]["last"].shape == (1, 1, 32)
    assert_allclose(profile.states["unsafe"]["last"][0, 0], full_states(tiny_llama, ids)[1, -1], atol=1e-4)


def test_all_layers_are_every_block(tiny_llama, refs):
    profile = SafetyProfile.build(tiny_llama, refs, layers="all", **PROFILE)
    assert profile.layers == (0, 1, 2, 3, 4)
    assert profile.states["safe"]["last"].shape == (4, 5, 32)


def test_layers_may_be_numpy_integers(tiny_llama, refs, profile, tmp_path):
    other = SafetyProfile.build(tiny_llama, refs, layers=np.array([3, 1]), **PROFILE)
    assert other.digest == profile.digest
    other.save_pretrained(tmp_path)


def test_a_saved_profile_is_read_back_whole(profile, saved):
    again = SafetyProfile.from_pretrained(saved)
    assert again.digest == profile.digest
    assert (again.source, again.layers, again.references) == (profile.source, profile.layers, profile.references)
    assert (again.signal, again.top_k, again.max_length) == (profile.signal, profile.top_k, profile.max_length)
    assert again.canary == profile.canary
    for side in ("unsafe", "safe"):
        for position in POSITIONS:
            assert_array_equal(again.states[side][position], profile.states[side][position])


def test_reading_the_references_shows_how_far_it_is(tiny_llama, refs, capsys):
    SafetyProfile.build(tiny_llama, refs, layers=[1], **PROFILE)
    shown = capsys.readouterr().err
    assert "References" in shown
    assert "164/164" in shown, "4 unsafe, 4 safe, 10 neutral and 146 borderline rows"


def test_building_twice_gives_the_same_digest(tiny_llama, refs, profile):
    assert SafetyProfile.build(tiny_llama, refs, layers=[3, 1], **PROFILE).digest == profile.digest


def test_every_setting_changes_the_digest(tiny_llama, refs, profile):
    states = {side: {p: v.copy() for p, v in by.items()} for side, by in profile.states.items()}
    states["safe"]["prompt"][0, 0, 0] += 1e-3
    others = [
        replace(profile, states=states),
        replace(profile, layers=(1, 3)),
        replace(profile, top_k=1),
        replace(profile, max_length=100),
        replace(profile, template_digest="0"),
        replace(profile, source=replace(profile.source, dtype="bfloat16")),
        replace(profile, source=replace(profile.source, revision="x")),
        replace(profile, source=replace(profile.source, chat_template=CHATML)),
        replace(profile, references=profile.references | {"source": "other"}),
    ]
    assert len({profile.digest, *(other.digest for other in others)}) == len(others) + 1


def test_a_profile_reads_with_the_model_it_was_built_with(profile, saved):
    reader = SafetyProfile.from_pretrained(saved).reader(device="cpu")
    assert reader.layers == (3, 1)
    assert len(reader.model.layers) == 4


def test_a_moved_model_is_recognised_by_its_states(tiny_llama, profile, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "elsewhere")
    reader = profile.reader(model=str(tmp_path / "elsewhere"), device="cpu")
    assert reader.layers == (3, 1)


def test_another_model_is_refused(profile, tmp_path, refs):
    other = save_tiny("Llama", tmp_path / "other", seed=5)
    with pytest.raises(ProfileMismatchError, match="not the model this profile was built with"):
        profile.reader(model=str(other), device="cpu")


@pytest.mark.parametrize(("share", "accepted"), [(0.1, True), (0.4, False)])
def test_states_of_quantised_weights_may_differ_more(share, accepted, profile, monkeypatch):
    """Their kernels round by what is in the batch; a state scaled by 1 + share differs by that share."""
    reader = profile.reader(device="cpu")
    other = {p: v * np.float32(1 + share) for p, v in profile.states["unsafe"].items()}
    moved = replace(profile, states=profile.states | {"unsafe": other})
    with pytest.raises(ProfileMismatchError):
        moved._check(reader, moved.source)
    monkeypatch.setattr(reader.model.config, "quantization_config", {}, raising=False)
    with nullcontext() if accepted else pytest.raises(ProfileMismatchError):
        moved._check(reader, moved.source)


def test_a_model_of_another_width_is_refused(profile, tmp_path):
    with pytest.raises(ProfileMismatchError, match="width"):
        profile.reader(model=str(save_tiny("Llama", tmp_path / "wide", width=64)), device="cpu")


def test_another_chat_template_is_refused(tiny_llama, profile, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(CHATML + " ")
    with pytest.raises(ProfileMismatchError, match="chat template"):
        profile.reader(model=str(tmp_path / "model"), device="cpu")


def test_a_chat_template_of_the_users_replaces_the_models_own(tmp_path, refs):
    bare = save_tiny("Llama", tmp_path / "bare", template=None)
    with pytest.raises(ModelError, match="chat template"):
        SafetyProfile.build(bare, refs, layers=[1], **PROFILE)
    profile = SafetyProfile.build(bare, refs, layers=[1], chat_template=CHATML, **PROFILE)
    profile.save_pretrained(tmp_path / "profile")
    assert SafetyProfile.from_pretrained(tmp_path / "profile").reader(device="cpu").tokenizer.chat_template == CHATML


def test_a_model_that_is_gone_is_refused_with_its_place(profile, tmp_path):
    gone = replace(profile, source=replace(profile.source, model_id=str(tmp_path / "gone")))
    with pytest.raises(ModelError, match="gone"):
        gone.reader(device="cpu")


@pytest.mark.parametrize("file", [CONFIG_FILE, STATES_FILE])
def test_a_file_cut_short_is_refused(saved, file):
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ProfileError, match="damaged"):
        SafetyProfile.from_pretrained(saved)


def test_changed_states_are_refused(saved):
    tensors = load_file(saved / STATES_FILE)
    tensors["safe.last"] = tensors["safe.last"] + 1
    save_file(tensors, saved / STATES_FILE)
    with pytest.raises(ProfileError, match="changed after"):
        SafetyProfile.from_pretrained(saved)


def test_one_changed_byte_is_refused(saved):
    content = bytearray((saved / STATES_FILE).read_bytes())
    content[-1] ^= 1
    (saved / STATES_FILE).write_bytes(content)
    with pytest.raises(ProfileError, match="changed after"):
        SafetyProfile.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99.*upgrade"),
        ({"layers": [0, 1]}, "changed after"),
        ({"surprise": 1}, "damaged"),
        ({"source": {"model": "x"}}, "damaged"),
        ({"source": 5}, "damaged"),
        ({"layers": None}, "damaged"),
    ],
)
def test_an_edited_config_is_refused(saved, change, message):
    edit(saved, **change)
    with pytest.raises(ProfileError, match=message):
        SafetyProfile.from_pretrained(saved)


def test_a_config_that_is_no_object_is_refused(saved):
    (saved / CONFIG_FILE).write_text("[1, 2]")
    with pytest.raises(ProfileError, match="damaged"):
        SafetyProfile.from_pretrained(saved)


def test_missing_states_are_refused(saved):
    (saved / STATES_FILE).unlink()
    with pytest.raises(ProfileError, match="damaged"):
        SafetyProfile.from_pretrained(saved)


def test_a_folder_without_profile_is_refused(tmp_path):
    with pytest.raises(ProfileError, match=CONFIG_FILE):
        SafetyProfile.from_pretrained(tmp_path)


def test_a_profile_goes_to_the_hub_and_comes_back_without_the_local_path(profile, hub, tiny_llama):
    profile = replace(profile, references=profile.references | {"source": "/home/me/secret/refs.jsonl"})
    url = profile.push_to_hub("org/profile", token=hub.token)
    assert "org/profile" in url
    again = SafetyProfile.from_pretrained("org/profile", token=hub.token)
    assert again.source.model_id == "llama"
    assert again.references["source"] == "refs.jsonl"
    assert profile.summary()["references"]["source"] == "refs.jsonl"
    assert_array_equal(again.states["safe"]["last"], profile.states["safe"]["last"])
    assert again.reader(model=str(tiny_llama), device="cpu").layers == (3, 1)


def test_the_card_of_a_profile_says_what_it_is_and_keeps_what_is_there(profile, hub):
    hub.create("org/profile", kind="model")
    theirs = "---\nlicense: mit\ntags: [ours]\n---\n# Our profile\n\nHand-written.\n"
    hub.commit("org/profile", {"README.md": theirs, "notes.txt": "keep"}, kind="model")
    profile.push_to_hub("org/profile", token=hub.token)
    held = hub.files("org/profile", kind="model")
    assert held.keys() == {"README.md", "notes.txt", CONFIG_FILE, STATES_FILE}
    card = ModelCard(held["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("mit", "larf-curate")
    assert card.data.tags == ["ours", "larf-profile"]
    assert card.data.base_model is None  # a local model
    assert card.text.startswith("# Our profile\n\nHand-written.\n")
    for fact in ("| layers (0-based decoder blocks) | 3, 1 |", "pass `model=`", "https://arxiv.org/abs/2507.18631"):
        assert fact in card.text
    assert hub.token not in held["README.md"].decode()
    assert len(hub.history("org/profile", kind="model")) == 3
    profile.push_to_hub("org/profile", token=hub.token)
    assert len(hub.history("org/profile", kind="model")) == 3


def test_a_profile_is_loaded_by_the_revision_of_its_repository(profile, hub):
    profile.push_to_hub("org/profile", token=hub.token)
    first = hub.history("org/profile", kind="model")[0].oid
    replace(profile, max_length=profile.max_length + 1).push_to_hub("org/profile", token=hub.token)
    lengths = [
        SafetyProfile.from_pretrained("org/profile", revision=revision, token=hub.token).max_length
        for revision in (first, "main")
    ]
    assert lengths == [profile.max_length, profile.max_length + 1]


def test_the_card_of_a_profile_of_a_hub_model_names_it(profile):
    summary = profile.summary() | {"model": "org/model", "revision": "abc"}
    card = ModelCard(merge_profile_card(None, summary, repo_id="org/profile"))
    assert card.data.base_model == "org/model"
    assert "| model revision | abc |" in card.text
    assert "pass `model=`" not in card.text


def test_a_hub_repository_that_is_not_there_is_refused(hub):
    with pytest.raises(ProfileError, match="no folder and no Hub repository"):
        SafetyProfile.from_pretrained("org/nothing")
    with pytest.raises(ProfileError, match="no folder and no Hub repository"):
        SafetyProfile.from_pretrained("not/a/valid/name")


def test_unknown_signals_are_refused(tiny_llama, refs, profile):
    with pytest.raises(ProfileError, match="magic"):
        SafetyProfile.build(tiny_llama, refs, layers=[1], **PROFILE | {"signal": "magic"})
    with pytest.raises(ProfileError, match="magic"):
        profile.fit("magic")


def test_a_word_that_names_no_layers_is_refused(tiny_llama, refs):
    with pytest.raises(ProfileError, match="'auto' or 'all', got 'best'"):
        SafetyProfile.build(tiny_llama, refs, layers="best", **PROFILE)


def test_an_adapter_is_refused_with_what_to_do(tiny_llama, refs, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    for _ in range(2):
        with pytest.raises(ModelError, match="holds an adapter .* give its base model org/base, and the adapter with"):
            SafetyProfile.build(tmp_path, refs, layers=[1], **PROFILE)
        shutil.copytree(tiny_llama, tmp_path, dirs_exist_ok=True)  # with config.json and weights beside it


DATED = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML


def on_day(monkeypatch, *day):
    """Let transformers write another date."""

    class Fixed(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(*day)

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Fixed)
    forget_reader()


def test_dates_of_the_template_are_those_of_the_day_on_which_the_profile_was_built(refs, tmp_path, monkeypatch):
    model = save_tiny("Llama", tmp_path / "model", template=DATED)
    on_day(monkeypatch, 2026, 1, 3)
    built = SafetyProfile.build(model, refs, layers=[3], **PROFILE)
    built.save_pretrained(tmp_path / "profile")
    tokenizer = built.reader(device="cpu").tokenizer
    row = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "One."}]
    ids = tokenizer.apply_chat_template(row, return_dict=False)
    assert "03 Jan 2026" in tokenizer.decode(ids)
    for day in ((2026, 1, 3), (2026, 1, 4), (2031, 12, 24)):
        on_day(monkeypatch, *day)
        loaded = SafetyProfile.from_pretrained(tmp_path / "profile")
        assert loaded.source.template_day == "2026-01-03"
        [item] = loaded.reader(device="cpu").renderer()([{"messages": row}])
        assert item.tokens.ids == ids[: len(item.tokens.ids)]
        assert len(ids) - len(item.tokens.ids) <= 1  # the line break after the last turn
        [explained] = explain(loaded, [{"messages": row}], device="cpu")
        [scored] = LarfScorer(loaded, device="cpu").score([{"messages": row}])
        assert explained.score == pytest.approx(scored.score, abs=1e-5)


def test_a_profile_without_a_day_says_that_the_template_writes_dates(refs, tmp_path, monkeypatch):
    model = save_tiny("Llama", tmp_path / "model", template=DATED)
    on_day(monkeypatch, 2026, 1, 3)
    built = SafetyProfile.build(model, refs, layers=[3], **PROFILE)
    old = replace(built, source=replace(built.source, template_day=None))
    assert len(old.reader(device="cpu").layers) == 1
    on_day(monkeypatch, 2031, 12, 24)
    with pytest.raises(ProfileMismatchError, match="writes today's date, which the profile does not record"):
        old.reader(device="cpu")


def test_profiles_of_templates_without_dates_record_no_new_fields(profile, saved):
    source = json.loads((saved / CONFIG_FILE).read_text())["source"]
    assert set(source) == {"model_id", "revision", "dtype", "chat_template"}
    assert SafetyProfile.from_pretrained(saved).digest == profile.digest


def test_a_profile_of_a_model_with_an_adapter_is_that_of_the_merged_model(tiny_llama, refs, tmp_path):
    adapted = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(tiny_llama),
        peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    bpe_tokenizer().save_pretrained(merged)
    want = SafetyProfile.build(merged, refs, layers=[1, 3], **PROFILE)
    built = SafetyProfile.build(tiny_llama, refs, layers=[1, 3], adapter=tmp_path / "adapter", **PROFILE)
    plain = SafetyProfile.build(tiny_llama, refs, layers=[1, 3], **PROFILE)
    for side in ("unsafe", "safe", "neutral"):
        assert_allclose(built.states[side]["last"], want.states[side]["last"], atol=1e-3)
    assert np.abs(built.states["safe"]["last"] - plain.states["safe"]["last"]).max() > 0.1
    built.save_pretrained(tmp_path / "profile")
    loaded = SafetyProfile.from_pretrained(tmp_path / "profile")
    assert loaded.reader(device="cpu").layers == (1, 3)
    assert loaded.summary()["adapter"] == "adapter"
    shutil.rmtree(tmp_path / "adapter")
    forget_reader()
    assert loaded.reader(model=str(merged), device="cpu").layers == (1, 3)


def test_one_of_several_templates_can_be_chosen(refs, tmp_path):
    model, tokenizer = save_tiny("Llama", tmp_path / "model"), bpe_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tool_use": DATED}
    tokenizer.save_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"rag, tool_use and no default: choose one \(--template-name NAME\)"):
        SafetyProfile.build(model, refs, layers=[1], **PROFILE)
    with pytest.raises(ModelError, match="one of the chat templates rag, tool_use, got 'default'"):
        SafetyProfile.build(model, refs, layers=[1], template_name="default", **PROFILE)
    built = SafetyProfile.build(model, refs, layers=[1], template_name="rag", **PROFILE)
    tokenizer.chat_template = CHATML
    assert built.template_digest == template_digest(tokenizer)
    built.save_pretrained(tmp_path / "profile")
    assert SafetyProfile.from_pretrained(tmp_path / "profile").reader(device="cpu").layers == (1,)


def test_a_template_that_does_not_end_is_refused_before_the_weights_are_loaded(refs, tmp_path, monkeypatch):
    slow = "{% for a in range(20000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}"  # takes seconds
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.05)
    model = save_tiny("Llama", tmp_path / "model")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="takes more than"):
        SafetyProfile.build(model, refs, layers=[1], chat_template=slow + CHATML, **PROFILE)
    with pytest.raises(ModelError, match="more than 1,000,000 characters"):
        SafetyProfile.build(model, refs, layers=[1], chat_template=CHATML + "{# #}" * 300_000, **PROFILE)


def test_layers_that_do_not_exist_are_refused(tiny_llama, refs):
    with pytest.raises(InputError, match="from 0 to 4"):
        SafetyProfile.build(tiny_llama, refs, layers=[7], **PROFILE)


LONG = "Sure, here is how. First do one thing, then do another thing, and in the end do the last of all the things."

AS_LONG = "No. That would hurt people who did not ask for it, and I want no part in it; speak with somebody you trust."


def unequal():
    prompts = ["How do I one?", "How do I two?", "How do I three?"]
    return ReferenceSet(
        unsafe=tuple({"prompt": p, "response": LONG} for p in prompts),
        safe=({"prompt": prompts[0], "response": "I cannot help."}, {"prompt": prompts[1], "response": AS_LONG}),
        labels=("x",) * 3,
        source="unequal",
    )


def test_answers_much_longer_than_their_counterparts_are_cut_for_all_signals_but_the_published_one(tiny_llama):
    options = PROFILE | {"signal": "unsafe_similarity"}
    profile = SafetyProfile.build(tiny_llama, unequal(), layers=[1], **options)
    whole = SafetyProfile.build(tiny_llama, unequal(), layers=[1], match_lengths=False, **options)
    tokens = load_reader(profile.source, (1,), device="cpu").tokenizer
    wanted = len(tokens("I cannot help.", add_special_tokens=False)["input_ids"])
    cut = tokens.decode(tokens(LONG, add_special_tokens=False)["input_ids"][:wanted]).rstrip()
    short = replace(
        unequal(),
        unsafe=tuple(
            {"prompt": r["prompt"], "response": a} for r, a in zip(unequal().unsafe, (cut, LONG, cut), strict=True)
        ),
    )
    by_hand = SafetyProfile.build(tiny_llama, short, layers=[1], match_lengths=False, **options)
    rows = profile.states["neutral"]
    assert_allclose(profile.fit()(rows), by_hand.fit()(rows), atol=1e-5)
    assert_array_equal(profile.fit("larf")(rows), whole.fit("larf")(rows))
    assert np.abs(profile.fit()(rows) - whole.fit()(rows)).max() > 1e-4
    assert profile.references["cut"] == {"unsafe": 2, "safe": 0}
    assert whole.references["cut"] == {"unsafe": 0, "safe": 0}
    assert profile.at([1]).references_for().unsafe["length"].max() == by_hand.states["unsafe"]["length"].max()


def test_the_published_signal_leaves_references_whole(tiny_llama):
    profile = SafetyProfile.build(tiny_llama, unequal(), layers=[1], **PROFILE)
    assert profile.references["cut"] == {"unsafe": 0, "safe": 0}
    assert set(profile.states) == {"unsafe", "safe", "neutral"}


def test_matched_states_are_saved_and_read_back(tiny_llama, tmp_path):
    profile = SafetyProfile.build(tiny_llama, unequal(), layers=[1], **PROFILE | {"signal": "combined"})
    profile.save_pretrained(tmp_path)
    again = SafetyProfile.from_pretrained(tmp_path)
    assert_array_equal(again.states["unsafe_matched"]["mean"], profile.states["unsafe_matched"]["mean"])
    assert again.digest == profile.digest


def test_cutting_leaves_raw_text_raw(tiny_llama):
    refs = ReferenceSet(unsafe=({"text": LONG},), safe=({"text": "No, I cannot."},), labels=("x",), source="text")
    tokenizer = bpe_tokenizer()
    matched = match_lengths(refs, tokenizer)
    assert set(matched.unsafe[0]) == {"text"}
    assert LONG.startswith(matched.unsafe[0]["text"])
    count = [len(tokenizer(row["text"])["input_ids"]) for row in (matched.unsafe[0], refs.safe[0])]
    assert 0 <= count[1] - count[0] <= 1, "a space at the end is not kept"
    assert matched.safe[0] is refs.safe[0]


def test_top_k_beyond_the_references_is_refused_at_once(tiny_llama, refs):
    with pytest.raises(ReferenceSetError, match="top_k"):
        SafetyProfile.build(tiny_llama, refs, layers=[1], top_k=5, **PROFILE)


def test_a_reference_that_the_template_refuses_is_named(tmp_path, refs):
    strict = save_tiny("Llama", tmp_path / "strict", template="{{ raise_exception('never') }}")
    with pytest.raises(ReferenceSetError, match="unsafe reference 0 cannot be scored.*never"):
        SafetyProfile.build(strict, refs, layers=[1], **PROFILE)


def test_the_summary_is_json_and_tells_no_local_path(profile, tiny_llama):
    text = json.dumps(profile.summary())
    assert str(tiny_llama.parent) not in text
    assert json.loads(text)["model"] == "llama"
    assert json.loads(text)["layers"] == [3, 1]
    assert json.loads(text)["digest"] == profile.digest


def text_set(count):
    """References of plain text, none of which has a prompt."""
    sides = [tuple({"text": f"{said} {number} as asked."} for number in range(count)) for said in ("Sure,", "No, not")]
    return ReferenceSet(unsafe=sides[0], safe=sides[1], labels=("x",) * count, source="text")


@pytest.mark.parametrize("side", ["unsafe references", "neutral rows"])
def test_sides_without_prompts_are_refused_by_signals_that_read_them(tiny_llama, refs, side, caplog):
    texts = text_set(12)
    sides = {"references": texts} if side == "unsafe references" else {"references": refs, "neutral": texts.unsafe}
    options = PROFILE | sides | {"layers": [1]}
    with pytest.raises(ReferenceSetError, match=rf"12 of 12 {side} are plain text.*harmful"):
        SafetyProfile.build(tiny_llama, **options | {"signal": "combined"})
    profile = SafetyProfile.build(tiny_llama, **options | {"signal": "harmful"})
    assert f"12 of 12 {side} are plain text" in caplog.text
    row = {position: values[:2] for position, values in profile.states["safe"].items()}
    assert np.isfinite(profile.fit("erosion")(row)).all()


def test_rows_without_a_prompt_count_as_having_an_ordinary_one(tiny_llama, refs):
    neutral = [*NEUTRAL, {"text": "Plain words."}, {"text": "More plain words."}]
    options = PROFILE | {"layers": [1, 3], "signal": "combined"}
    got = SafetyProfile.build(tiny_llama, refs, **options | {"neutral": neutral}).states["neutral"]["prompt"]
    want = SafetyProfile.build(tiny_llama, refs, **options | {"neutral": NEUTRAL}).states["neutral"]["prompt"]
    assert_allclose(got[:-2], want, atol=1e-5)
    assert_allclose(got[-2:], np.stack([want.mean(axis=0)] * 2), atol=1e-5)


def test_a_saved_profile_names_the_model_that_it_was_built_from(tiny_llama, tiny_qwen2, refs, tmp_path):
    for folder in (tiny_llama, tiny_qwen2):
        SafetyProfile.build(folder, refs, layers=[1], **PROFILE).save_pretrained(tmp_path / folder.name)
    for folder in (tiny_llama, tiny_qwen2):
        saved = json.loads((tmp_path / folder.name / "larf_profile.json").read_text())
        assert saved["source"]["model_id"] == str(folder.resolve())
