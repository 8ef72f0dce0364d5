"""The reverse proxy: requests for ports of sandboxes, answered by the programs that listen there."""
