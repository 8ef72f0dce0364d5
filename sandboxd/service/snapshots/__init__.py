"""Snapshots taken, restored, cloned, exported and imported."""
