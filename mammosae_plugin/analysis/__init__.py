"""Analyses: pure functions from the latents table to data frames."""
