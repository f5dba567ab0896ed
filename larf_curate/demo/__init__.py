"""The whole loop on packaged rows and the packaged model."""
