"""The end-to-end demo: the complete workflow on packaged rows with a small chat model."""
