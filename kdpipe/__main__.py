"""`python -m kdpipe` is the command `kdpipe`."""

from kdpipe.cli import main

main()
