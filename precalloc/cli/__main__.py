"""`python -m precalloc.cli`."""

from precalloc.cli import main

main()
