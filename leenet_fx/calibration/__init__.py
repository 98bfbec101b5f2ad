"""Calibration: cached outputs, thresholds for budgets, temperature scaling."""
