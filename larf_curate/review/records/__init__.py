"""Flagged rows as Argilla records, with their evidence."""
