"""Trees of files as values and streams: tar and zip, layers, walking, copying; synchronous, standard library only."""
