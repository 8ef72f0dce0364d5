"""Commands in a sandbox: attached to their client, in the background, and with a terminal."""
