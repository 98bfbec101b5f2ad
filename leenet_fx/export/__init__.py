"""Networks with exits as files for other runtimes."""
