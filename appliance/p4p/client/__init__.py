"""Clients: blocking (`thread`), on an event loop (`asyncio`), and by callbacks (`raw`)."""
