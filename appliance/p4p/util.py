"""Queues of calls, and the threads that make them."""
