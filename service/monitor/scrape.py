"""Fetches the metrics of a server over HTTP."""

import http.client
import ssl
import time
from collections.abc import Callable

from convoy.service.client.credentials import Credentials
from convoy.service.errors import BadConfig, ConvoyError
from convoy.service.monitor.exposition import BadExposition, parse
from convoy.service.monitor.figures import Scrape, scraped

_SECONDS = 5.0  # for one scrape: one that takes longer is as good as none
_MOST_BYTES = 64 << 20


class NoAnswer(ConvoyError):
    """No server answers at the address now."""

    reason = "NO_ANSWER"


class NoMetrics(ConvoyError):
    """What answers refuses, or has no metrics of Convoy."""

    reason = "NO_METRICS"


class Scraper:
    """Asks one server at `address`, HOST:PORT. Raises BadConfig for files that cannot be read."""

    def __init__(self, address: str, credentials: Credentials, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self._clock = clock
        self._headers = dict(credentials.metadata())
        self._context = _context(credentials)

    def scrape(self) -> Scrape:
        """The metrics as they are now. Raises NoAnswer, NoMetrics."""
        connection = (
            http.client.HTTPConnection(self.address, timeout=_SECONDS)
            if self._context is None
            else http.client.HTTPSConnection(self.address, timeout=_SECONDS, context=self._context)
        )
        try:
            connection.request("GET", "/metrics", headers=self._headers)
            answer = connection.getresponse()
            text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
        except ssl.SSLError as error:
            raise NoMetrics(f"{self.address} and this client agree on no TLS ({error.reason or error})") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from None
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            said = " ".join(text.split())[:100]
            raise NoMetrics(f"{self.address} answers {answer.status} {answer.reason}: {said}")
        try:
            result = scraped(parse(text), self._clock())
        except BadExposition:
            result = None
        if result is None or not any(name.startswith("convoy_") for name in result.metrics):
            raise NoMetrics(f"{self.address} answers without metrics of Convoy: is it the port of --metrics-port?")
        return result

    def _failed(self, error: Exception) -> ConvoyError:
        why = "no answer in time" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, http.client.RemoteDisconnected):
            return NoMetrics(f"{self.address} speaks no HTTP: want the port of the metrics, 8002 by default")
        if isinstance(error, ConnectionResetError | http.client.RemoteDisconnected) and self._context is None:
            why = "the connection was closed: does the server want --tls?"
        return NoAnswer(f"no answer from {self.address} ({why or type(error).__name__})")


def _context(credentials: Credentials) -> ssl.SSLContext | None:
    if not (credentials.tls or credentials.ca or credentials.certificate):
        return None
    try:
        context = ssl.create_default_context(cafile=credentials.ca or None)
        if credentials.certificate:
            context.load_cert_chain(credentials.certificate, credentials.key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(repr(name) for name in (credentials.ca, credentials.certificate, credentials.key) if name)
        raise BadConfig(f"{files}: {error.strerror or error}, want files in PEM") from None
    return context
