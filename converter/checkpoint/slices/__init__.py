"""A slice of a checkpoint (see models/matformer): read as if it were a smaller checkpoint, or written as one."""
