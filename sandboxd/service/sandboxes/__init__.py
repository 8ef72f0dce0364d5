"""Sandboxes from creation to deletion: the registry, their supervisors, and what a machine needs of the host."""
