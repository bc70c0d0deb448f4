"""What is wrong: in weights, layers and encoders, by the names of known faults."""
