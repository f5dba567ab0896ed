"""The Argilla side of a review: connection to the server, review dataset and its settings."""
