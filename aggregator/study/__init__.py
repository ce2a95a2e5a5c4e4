"""Studies: states, steps, what a stage's sum leads to."""
