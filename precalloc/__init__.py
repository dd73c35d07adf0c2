"""Precision allocation for analog neural-network accelerators."""
