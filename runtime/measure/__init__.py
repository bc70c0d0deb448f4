"""Speed, memory and budgets, measured."""
