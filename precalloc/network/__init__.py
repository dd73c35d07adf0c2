"""Everything that touches a torch model: interception, sensitivity, simulation. The only part of precalloc that imports torch."""
