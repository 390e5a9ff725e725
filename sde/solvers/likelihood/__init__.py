"""Densities along the probability flow: log-likelihood, bits per dimension."""
