"""Settings in environment variables: CONVOY_SERVER__GRPC_PORT is server.grpc_port."""

import difflib
import re
from collections.abc import Collection, Mapping

from convoy.service.errors import BadConfig

_PREFIX = "CONVOY_"
_BETWEEN = "__"  # section and key. Kubernetes itself sets CONVOY_SERVICE_HOST and more for a service called convoy
# What Kubernetes sets for a service. The name of one that is called convoy-a--b looks like a section and a key.
_OF_A_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")  # the value of one more, CONVOY_PORT


def variable(key: str) -> str:
    """The name of the variable that sets a dotted key."""
    return _PREFIX + key.replace(".", _BETWEEN).upper()


def variables(environment: Mapping[str, str], keys: Collection[str]) -> dict[str, str]:
    """The settings of an environment by dotted key, one of `keys`; as text. An empty variable sets nothing.

    Raises BadConfig if a variable looks like a setting and is none.
    """
    known = {variable(key): key for key in keys}
    sections = {name.partition(_BETWEEN)[0] for name in known}
    shorter = [name.removeprefix(_PREFIX) for name in known]
    found = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(_PREFIX) or _BETWEEN not in name.removeprefix(_PREFIX):
            continue
        if name not in known:
            if _is_of_a_service(name, text) and name.partition(_BETWEEN)[0] not in sections:
                continue
            close = difflib.get_close_matches(name.upper().removeprefix(_PREFIX), shorter, n=1)
            hint = f"did you mean {_PREFIX}{close[0]}?" if close else "'convoy config' lists all settings"
            raise BadConfig(f"environment variable {name} is no setting; {hint}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadConfig(f"environment variable {name} is {text!r}, which is not UTF-8") from None
        if text.strip():
            found[known[name]] = text.strip()
    return found


def _is_of_a_service(name: str, text: str) -> bool:
    return bool(_OF_A_SERVICE.search(name) or (name.endswith("_PORT") and _ADDRESS.match(text)))
