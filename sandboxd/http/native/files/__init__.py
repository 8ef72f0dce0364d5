"""Files over /v1."""
