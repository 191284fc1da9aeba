"""The client: for threads, for asyncio, and the results that it returns."""
