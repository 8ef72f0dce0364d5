"""Commands and terminals over /v1."""
