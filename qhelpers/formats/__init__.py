"""Number formats: small floats, code books, and blocks that share a scale."""
