"""Rules that add noise: churn and restart around a flow, Milstein and stochastic Runge–Kutta for SDEs."""
