"""Files of a sandbox, and directories of it as archives."""
