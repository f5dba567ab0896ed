"""Annotators' responses, merged into one decision per row and applied to the selection."""
