"""The computation of a model as a value: ops, one function for each signature, and a run in numpy."""
