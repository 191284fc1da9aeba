"""An HTTP server with known pages, in place of a server's metrics."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

# 130 requests for letters and 26 for colours, 19 broken pictures: of these, 100, 20 and 15 between the two.
RECORDED = [Path(__file__).with_name(f"{name}.txt").read_text() for name in ("first", "second")]


@contextmanager
def answering(bodies: Sequence[str], status: int = 200, port: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Answers with these bodies in turn, then with the last one: its address, and the tokens that it was sent."""
    tokens: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies[min(len(tokens), len(bodies) - 1)]
            tokens.append(self.headers.get("authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", tokens
        finally:
            server.shutdown()
            thread.join()
