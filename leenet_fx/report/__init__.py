"""Tables, plots and result files."""
