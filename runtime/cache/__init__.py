"""The folder of packed weights: filling it before the first start, looking into it, and clearing it up."""
