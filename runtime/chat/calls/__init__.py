"""Tools as models see them, and the calls that models write."""
