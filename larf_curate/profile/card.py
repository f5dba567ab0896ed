"""The model card of a profile on the Hub: metadata by which it is found, and a generated section on what it is."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from larf_curate.profile.decided import FIGURES, in_words
from larf_curate.publish.card import add_tags, escape_inline, parse_card, render_card, render_template, replace_section

LIBRARY, TAG = "larf-curate", "larf-profile"


def merge_profile_card(existing: str | None, summary: Mapping[str, Any], *, repo_id: str) -> str:
    """Update a card with the generated section and the metadata of a profile; the rest of it does not change.

    Args:
        existing: Text of the existing card, if any.
        summary: `SafetyProfile.summary`.
        repo_id: The repository.

    Returns:
        The text of the merged card.

    Raises:
        PublishError: If the existing card's metadata is invalid.
    """
    card = parse_card(f"\n# {escape_inline(repo_id.split('/')[-1])}\n" if existing is None else existing, ModelCard)
    # A local model is recorded by the name of its folder, and one of the Hub with its commit.
    is_hub_model = summary["revision"] is not None
    found = {"library_name": LIBRARY} | ({"base_model": summary["model"]} if is_hub_model else {})
    for name, value in found.items():
        if card.data.get(name) is None:
            card.data[name] = value
    add_tags(card, (TAG,))
    values = {
        "adapter": None,
        "decisions": None,
        "figure_names": FIGURES,
        **summary,
        "repo_id": repo_id,
        "is_hub_model": is_hub_model,
    }
    values |= {"layers": ", ".join(map(str, summary["layers"])), "revision": summary["revision"] or "not recorded"}
    if summary.get("decisions"):
        values["decided_rows"] = in_words(summary["decisions"])
    card.text = replace_section(card.text, render_template("profile_section.md.j2", values))
    return render_card(card, existing)
