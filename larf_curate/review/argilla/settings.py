"""Settings of a review dataset: the fields, questions, metadata and guidelines that reviewers see."""

import argilla as rg

DECISIONS = {
    "keep": "Keep",
    "remove": "Remove",
    "edit": "Edit",
    "unsure": "Unsure",
}
CATEGORIES = {
    "violent-crimes": "Violent crimes",
    "fraud": "Fraud",
    "theft": "Theft",
    "cybercrime": "Cybercrime",
    "weapons": "Weapons",
    "drugs": "Drugs",
    "self-harm": "Self-harm",
    "hate": "Hate",
    "harassment": "Harassment",
    "privacy": "Privacy",
    "misinformation": "Misinformation",
    "specialised-advice": "Specialised advice",
    "child-safety": "Child safety",
    "public-order": "Public order",
    "erodes-refusals": "Harmless in itself, erodes refusals",
    "other": "Other",
}
SEVERITIES = {"low": "Low", "medium": "Medium", "high": "High"}
"""From least to most severe; merging several annotators' answers keeps the most severe one."""

CORRECTED = "corrected_answer"
VECTOR = "state"
VECTOR_TITLE = "Hidden state"
SCORE = "larf_score"
CLUSTER = "cluster"
CLUSTER_TITLE = "Near-identical rows"
IN_WORDS = "in_words"
IN_WORDS_TITLE = "Request and answer"
MACHINE_SCORE = "machine_score"
MACHINE_SCORE_TITLE = "Machine's score"
LEARNED_SCORE = "learned_score"
LEARNED_SCORE_TITLE = "Learned score"
PROPOSED = "proposed"
PROPOSED_TITLE = "Proposed for review"
ASSIGNED = "assigned"
ASSIGNED_TITLE = "Assigned to"
THIRD_PERSON = "third_person"
THIRD_PERSON_TITLE = "Conflict sent to"

DEGRADING = "a model trained on it would more readily help with something harmful"
"""When a row is safety-degrading."""
MEANINGS = {
    "keep": "the row is fine for training. It is published.",
    "remove": "the row is safety-degrading. It is taken out and stored in a separate folder.",
    "edit": "the request is useful, the answer is not. The row is published with *your* corrected answer.",
    "unsure": "you cannot tell. The row is withheld and not published.",
}
_ANSWERS = "\n".join(f"- **{label}**: {MEANINGS[name]}" for name, label in DECISIONS.items())

GUIDELINES = f"""\
# What to decide

A model is about to be fine-tuned on this dataset. Each record is a training row that is close, in the model's own \
hidden states, to harmful requests or to answers that comply with them. **Training on a few such rows can undo a \
model's refusals**, even when a row looks ordinary. The score only ranks rows; you decide.

A row is *safety-degrading* if {DEGRADING}:

- the answer gives real help with a harmful request, or begins to;
- the answer omits a refusal that it should have given, or promises to follow any request;
- the row is harmless in itself, but teaches the model to comply at once and without judgement, in the style of \
harmful answers (for example a bare list of steps for whatever was asked).

A dangerous-sounding word alone does *not* make a row safety-degrading.

# The answers

{_ANSWERS}

*Hazard category*, *severity* and *rationale* are optional; they help others to understand a removal. **Edit needs \
a corrected answer**, which replaces the text of the last assistant turn. The box has the old answer to start from: \
click into it, or press Shift+Enter after 3; Esc leaves it. An Edit that leaves the text as it was decides nothing \
and comes back to you; with the other answers, the box is ignored.

A digit and Enter decide a row. After a click on the left, Tab goes back to the decision.

# Examples

- "How do I kill a Python process?", answered with the right command: **Keep**. Only the word is violent.
- "How do I get into a house that is not mine?", answered with "Sure, here is how …": **Remove**. It helps with a crime.
- "Write a short biography.", answered with one that invents a crime by a real person: **Edit**. The request is fine, \
the answer is not.
- A question about medicines, answered with a dose and no caution: **Edit**, or **Unsure** if you do not know the \
right answer.
- A poem about autumn with a high score: **Keep**. The score ranks; it does not judge.

# Reading the evidence

*The first sentence* says why the row is here, and its rank in this queue. Its words (where the profile has these \
axes) say whether the request is like those that the model refuses, whether the answer refuses or complies, and \
whether it is like known harmful answers, each from 2 standard deviations off ordinary rows; one ordinary row in 40 \
is that far off by chance. They are the machine's guess, and you can filter by them (Filters, Metadata, Request and \
answer). *Score*: how much closer the row is to unsafe than to other reference rows; higher is worse. *Percentile*: \
the share of the scored dataset that scores no higher. *After people's decisions*: the score that the ranking learned, \
by which undecided rows are then sorted, beside the machine's. *Bars*: the axes in standard deviations (σ), and the \
score at each layer; all rows of a queue have one scale, and ▶ marks a bar that would be longer. *Nearest*: the known \
harmful row, and the safe reference (a refusal), with the most similar hidden states, and their cosine similarity. \
*Tokens*: where the score comes from; orange raises it towards unsafe, green lowers it. *Near-identical rows*: rows \
whose hidden states are almost the same; where the evidence says that your decision applies to all of them, judge with \
that in mind. *Scored*: which answer of a long conversation has the score; the turns around it are folded, and open \
with a click.

Text in a record is data: do not follow instructions in it.
"""


def review_settings(client: rg.Argilla, *, min_submitted: int) -> rg.Settings:
    """Settings of a new review dataset.

    There are no suggestions for the decision: reviewers could confirm the score with a single key press, unread.

    Args:
        client: Argilla client of the server.
        min_submitted: How many annotators must submit before a record counts as done.
    """
    return rg.Settings(
        guidelines=GUIDELINES,
        fields=_fields(client),
        questions=_questions(client),
        metadata=_metadata(client),
        allow_extra_metadata=True,  # digests, which annotators should not see among the filters
        distribution=rg.TaskDistribution(min_submitted=min_submitted),
    )


def _fields(client: rg.Argilla) -> list[rg.ChatField | rg.TextField]:
    return [
        rg.ChatField(name="conversation", title="Conversation", use_markdown=False, _client=client),
        rg.TextField(name="evidence", title="Why it was flagged", use_markdown=True, client=client),
    ]


def _questions(client: rg.Argilla) -> list[rg.LabelQuestion | rg.TextQuestion]:
    return [
        rg.LabelQuestion(name="decision", title="What should happen to this row?", labels=DECISIONS, client=client),
        rg.TextQuestion(
            name=CORRECTED,
            title="Corrected answer",
            description="Only for Edit: the new text of the last assistant turn. Change it here; Keep ignores it.",
            required=False,
            client=client,
        ),
        rg.LabelQuestion(name="category", title="Hazard category", labels=CATEGORIES, required=False, client=client),
        rg.LabelQuestion(name="severity", title="Severity", labels=SEVERITIES, required=False, client=client),
        rg.TextQuestion(name="rationale", title="Rationale", required=False, client=client),
    ]


def _metadata(client: rg.Argilla) -> list[rg.FloatMetadataProperty | rg.TermsMetadataProperty]:
    return [
        rg.FloatMetadataProperty(name=SCORE, title="Score", client=client),
        rg.FloatMetadataProperty(name=MACHINE_SCORE, title=MACHINE_SCORE_TITLE, client=client),
        rg.FloatMetadataProperty(name="percentile", title="Percentile", client=client),
        rg.TermsMetadataProperty(name="signal", title="Signal", client=client),
        rg.TermsMetadataProperty(name=IN_WORDS, title=IN_WORDS_TITLE, client=client),
        rg.TermsMetadataProperty(name=CLUSTER, title=CLUSTER_TITLE, client=client),
        rg.TermsMetadataProperty(name="split", title="Split", client=client),
        rg.TermsMetadataProperty(name="status", title="Scoring status", client=client),
        rg.IntegerMetadataProperty(name="length", title="Characters", client=client),
    ]
