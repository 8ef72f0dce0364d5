"""The daemon's side of sandbox-init: its frames, its messages, and a client for each kind of operation."""
