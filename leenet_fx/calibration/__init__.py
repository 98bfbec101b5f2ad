"""Thresholds chosen on calibration data: solvers, budgets, cached outputs."""
