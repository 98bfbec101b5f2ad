"""Images with labels, and the four splits that keep fitting, choosing and reporting apart."""
