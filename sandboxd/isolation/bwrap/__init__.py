"""Sandboxes isolated by bubblewrap, started and assembled by a fork server."""
