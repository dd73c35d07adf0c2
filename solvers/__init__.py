"""Separable convex resource allocation with certificates; knows nothing of torch or precalloc."""
