"""Measurement of networks with exits: evaluation, sweeps over α, comparison of methods."""
