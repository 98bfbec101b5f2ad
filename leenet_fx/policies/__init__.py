"""Policies: which samples exit early."""
