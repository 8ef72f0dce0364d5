"""Ports over /v1."""
