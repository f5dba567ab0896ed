"""Causal language models: loading, decoder blocks, hidden states, generation and likelihood."""
