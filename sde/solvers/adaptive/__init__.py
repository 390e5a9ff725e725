"""Solvers that choose their own steps, sample by sample, and the back ends of other libraries."""
