"""Tables, plots, result files and the report page."""
