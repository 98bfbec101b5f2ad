"""What is kept on disk: whole files only, and what is new of a network with exits."""
