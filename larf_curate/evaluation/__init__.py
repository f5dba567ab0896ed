"""Evaluation of a model: how often it refuses, and what it can still do."""
