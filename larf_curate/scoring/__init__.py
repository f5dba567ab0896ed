"""Scoring rows into ``larf_*`` columns: scorer, resumable runs, selection, nearest exemplars and explanations."""
