"""Where packed weights are kept, so that nobody else can change them, and the processes that pack."""
