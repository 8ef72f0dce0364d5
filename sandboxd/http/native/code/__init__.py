"""Code execution over /v1."""
