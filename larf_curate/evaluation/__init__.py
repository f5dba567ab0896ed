"""How often a model refuses, and what it can still do."""
