"""Argilla records of flagged rows: conversation, evidence, vectors and groups of near-duplicates; and their push."""
