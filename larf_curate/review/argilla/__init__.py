"""Argilla's side of a review: connection, dataset and settings."""
