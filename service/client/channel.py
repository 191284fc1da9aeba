"""How a client's calls find a server: retries, and balancing and health checks where a target names several."""

import json
import re
from typing import Any

from convoy.service.client.credentials import OPTIONS
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

# gRPC's own retries. UNAVAILABLE means that a process of the server has died, or that another replica may answer; no
# other status says that the request may be sent again. The waits add up to 7.5 s, longer than a process takes to start,
# and grow slowly, so that little time is lost once it has; gRPC makes at most five attempts. Where the server knows
# better, it says so (grpc-retry-pushback-ms), and gRPC waits for as long, or gives up.
_RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.5s",
    "maxBackoff": "4s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# Bytes of a request that are kept for another attempt: any request. By default gRPC keeps 256 KiB, and a larger request
# is lost with the replica that it was sent to.
ANY_REQUEST = 2**31 - 1
KEEPALIVE = 20.0  # seconds of silence; convoy's servers allow pings each second, and proxies do not count so few
_ANSWER_SECONDS = 10.0  # for a ping, of which a server that lives needs milliseconds
# Names that gRPC resolves to any number of servers, and lists of addresses.
_SEVERAL = re.compile(r"dns:.+|(?:ipv4|ipv6):[^,]+,.+", re.DOTALL)


def options(
    target: str, *, retry: bool, retry_buffer_bytes: int, balance: bool, health: bool, keepalive: float
) -> list[tuple[str, Any]]:
    """The options of a channel; see `Client`. Streams are never repeated."""
    config: dict[str, Any] = {}
    found = [*OPTIONS, ("grpc.enable_retries", int(retry))]
    if keepalive > 0:
        answer = round(min(keepalive, _ANSWER_SECONDS) * 1000)
        found += [
            ("grpc.keepalive_time_ms", round(keepalive * 1000)),
            # Of the two, gRPC keeps the longer one, which is a minute by default.
            ("grpc.keepalive_timeout_ms", answer),
            ("grpc.http2.ping_timeout_ms", answer),
            ("grpc.http2.max_pings_without_data", 0),  # by default the third one waits for a minute
        ]
    if retry:
        vision = pb.DESCRIPTOR.services_by_name["Vision"]
        unary = [method.name for method in vision.methods if not method.client_streaming]
        names = [{"service": vision.full_name, "method": name} for name in unary]
        config["methodConfig"] = [{"name": names, "retryPolicy": _RETRIES}]
        found += [
            ("grpc.per_rpc_retry_buffer_size", retry_buffer_bytes),
            # By default the waits between connections grow from 1 s to 2 minutes, and every attempt in them would fail.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            # gRPC's default, against its name the least time for a connection to be made: without it an attempt ends
            # after those waits, and a server behind a slow network, or one that starts, would never be reached.
            ("grpc.min_reconnect_backoff_ms", 20_000),
        ]
    if balance and _SEVERAL.fullmatch(target):
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        if health:
            config["healthCheckConfig"] = {"serviceName": ""}
        # By default a name is looked up every 30 s at most: in that time all replicas may have got new addresses.
        found.append(("grpc.dns_min_time_between_resolutions_ms", 2000))
    return [*found, ("grpc.service_config", json.dumps(config))] if config else found
