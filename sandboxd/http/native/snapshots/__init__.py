"""Snapshots, clones and the use of the disk over /v1."""
