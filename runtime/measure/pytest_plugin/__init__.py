"""Memory budgets as tests."""
