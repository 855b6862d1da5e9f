"""The cluster map: an immutable, versioned snapshot of who holds what, and where it comes from."""
