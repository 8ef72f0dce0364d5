"""What lies on disk for sandboxes: their files, the layers below them, snapshots, and the pool."""
