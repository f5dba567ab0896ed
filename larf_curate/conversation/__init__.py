"""A row as the chat messages it trains on, and as the tokens a model reads."""
