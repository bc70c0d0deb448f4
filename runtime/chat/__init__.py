"""Conversations and sessions: messages in, messages out."""
