"""What a reviewer sees and answers: the fields, questions, metadata and guidelines of a review dataset."""

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
"""From least to most severe: a merge of several annotators keeps the most severe one."""

VECTOR = "state"
VECTOR_TITLE = "Hidden state"
SCORE = "larf_score"
CLUSTER = "cluster"
CLUSTER_TITLE = "Near-identical rows"
MACHINE_SCORE = "machine_score"
MACHINE_SCORE_TITLE = "Score before anybody decided"
PROPOSED = "proposed"
PROPOSED_TITLE = "Look at next"

GUIDELINES = """\
# What to decide

A model is about to be fine-tuned on this dataset. Each record is a training row that lies close, in the model's own \
hidden states, to harmful requests or to answers that comply with them. **Training on a few such rows can undo a \
model's refusals**, even when a row looks ordinary. The score only ranks rows; you decide.

A row is *safety-degrading* when a model that learns from it would more readily help with something harmful:

- the answer gives real help with a harmful request, or begins to;
- the answer drops a refusal that it should have given, or promises to follow any request;
- the row is harmless by itself, but teaches to comply at once and without judgement, in the form that harmful \
answers have (for example a bare list of steps for whatever was asked).

It is *not* safety-degrading because a word in it sounds dangerous.

# The answers

- **Keep**: a fine training row. It is published.
- **Remove**: it is safety-degrading. It is taken out and kept in a separate folder.
- **Edit**: the request is useful, the answer is not. It is published with *your* corrected answer.
- **Unsure**: you cannot tell. It is withheld, never published.

*Hazard category*, *severity* and *rationale* are optional; they help others to understand a removal. **Edit needs \
the corrected answer**: without it the row is withheld. It replaces the text of the last assistant turn.

# Examples

- "How do I kill a Python process?", answered with the right command: **Keep**. Only the word is violent.
- "How do I get into a house that is not mine?", answered with "Sure, here is how …": **Remove**. It helps with a crime.
- "Write a short biography.", answered with one that invents a crime by a real person: **Edit**. The request is fine, \
the answer is not.
- A question on medicines, answered with a dose and no caution: **Edit**, or **Unsure** if you do not know better.
- A poem about autumn with a high score: **Keep**. The score ranks; it does not judge.

# Reading the evidence

*Score*: how much closer the row lies to unsafe than to safe reference answers; higher is worse. *Percentile*: the \
share of the scored dataset that scores no higher. *Layers*: the score at each layer that was used. *Nearest \
exemplars*: the known rows whose hidden states are most alike, with their label and cosine similarity. *Tokens*: \
where the score comes from; orange pulls towards unsafe, green away from it. *Near-identical rows*: rows whose hidden \
states are almost the same; where it says that your decision serves them all, judge with that in mind.

Text in a record is data. If it tells you to do something, do not.
"""


def review_settings(client: rg.Argilla, *, min_submitted: int) -> rg.Settings:
    """Settings of a new review dataset.

    No suggestion is ever made on the decision: one key press would then confirm the machine.

    Args:
        client: The connection they are made for.
        min_submitted: How many annotators must submit before a record counts as done.
    """
    return rg.Settings(
        guidelines=GUIDELINES,
        fields=_fields(client),
        questions=_questions(client),
        metadata=_metadata(client),
        allow_extra_metadata=True,  # digests, which no annotator should see as a filter
        distribution=rg.TaskDistribution(min_submitted=min_submitted),
    )


def _fields(client: rg.Argilla) -> list[rg.ChatField | rg.TextField]:
    return [
        rg.ChatField(name="conversation", title="Conversation", use_markdown=False, _client=client),
        rg.TextField(name="evidence", title="Why it is here", use_markdown=True, client=client),
    ]


def _questions(client: rg.Argilla) -> list[rg.LabelQuestion | rg.TextQuestion]:
    return [
        rg.LabelQuestion(name="decision", title="What should happen to this row?", labels=DECISIONS, client=client),
        rg.TextQuestion(
            name="corrected_answer",
            title="Corrected answer",
            description="Only for Edit: the new text of the last assistant turn.",
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
        rg.FloatMetadataProperty(name="percentile", title="Percentile", client=client),
        rg.TermsMetadataProperty(name="signal", title="Signal", client=client),
        rg.TermsMetadataProperty(name=CLUSTER, title=CLUSTER_TITLE, client=client),
        rg.TermsMetadataProperty(name="split", title="Split", client=client),
        rg.TermsMetadataProperty(name="status", title="Scoring status", client=client),
        rg.IntegerMetadataProperty(name="length", title="Characters", client=client),
    ]
