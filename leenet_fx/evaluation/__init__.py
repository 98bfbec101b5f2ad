"""Accuracy, cost and time of a network with exits."""
