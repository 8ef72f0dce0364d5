"""Sandboxes and their events over /v1."""
