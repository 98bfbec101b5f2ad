"""Networks with exits on disk, and files that are written atomically."""
