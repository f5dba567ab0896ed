"""A push under a budget: the rows of a selection as the population of a sample, and samples in records."""
