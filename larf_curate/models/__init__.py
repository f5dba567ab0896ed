"""A causal language model: where it comes from, its decoder blocks and hidden states, its answers."""
