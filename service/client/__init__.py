"""The client, for threads and for asyncio, and its results."""
