"""Watches over /v1."""
