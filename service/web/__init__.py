"""HTTP/1 for the processes that speak it: connections on uvicorn's protocol, with limits, and listening ports."""
