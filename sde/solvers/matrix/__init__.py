"""Rules for matrix SDEs: the flow's own factor, and the splitting of the Langevin dynamics."""
