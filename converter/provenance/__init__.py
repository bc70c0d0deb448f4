"""Where a bundle comes from, in the formats that others read, and a signature over it."""
