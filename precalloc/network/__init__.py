"""Everything that touches a torch model, and the only part of precalloc that imports torch."""
