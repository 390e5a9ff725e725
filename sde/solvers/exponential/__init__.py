"""Rules on a model's endpoints: what is linear in the flow is solved exactly, a polynomial goes through the rest."""
