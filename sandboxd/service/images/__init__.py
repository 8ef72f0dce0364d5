"""Read-only root file systems: their store, the recipes they are built from, the host itself as one."""
