"""`python -m sandboxd`: the daemon's program."""

from sandboxd.cli.daemon import main

main()
