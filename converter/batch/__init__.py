"""Many conversions on one machine, inside one budget of memory; and the same list for a cluster."""
