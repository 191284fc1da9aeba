"""The binding of libnghttp2, through cffi in ABI mode: no compiler is needed, and any version with this ABI will do.

Newer versions have functions whose names end in 2 beside older ones. The older ones are in every version, so they are
the ones used here. Strings are `char` where nghttp2 has `uint8_t`, of which cffi would make lists instead of bytes.
"""

from typing import Any

import _cffi_backend
import cffi

from convoy.service.machine import HTTP2_LIBRARY

# Frames.
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
END_STREAM = ACK = 1  # flags
# Settings.
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 2, 3, 4, 5, 6
# Error codes of RST_STREAM and GOAWAY.
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 2, 7, 8, 11
# Flags of a data source, and of a header.
EOF, NO_END_STREAM = 1, 2
NO_COPY = 2 | 4  # of the name and the value: both stay where they are until the frame is sent
# Results of callbacks and functions.
DEFERRED, STREAM_FAILURE, CALLBACK_FAILURE = -508, -521, -902

_DECLARATIONS = """
typedef struct nghttp2_session nghttp2_session;
typedef struct nghttp2_session_callbacks nghttp2_session_callbacks;
typedef struct nghttp2_option nghttp2_option;

typedef struct { int age; int version_num; const char *version_str; const char *proto_str; } nghttp2_info;
typedef struct { char *name; char *value; size_t namelen; size_t valuelen; uint8_t flags; } nghttp2_nv;
typedef struct { int32_t settings_id; uint32_t value; } nghttp2_settings_entry;
/* Every frame begins with its header. */
typedef struct { size_t length; int32_t stream_id; uint8_t type; uint8_t flags; uint8_t reserved; } nghttp2_frame;

typedef union { int fd; void *ptr; } nghttp2_data_source;
typedef ssize_t (*nghttp2_read)(nghttp2_session *, int32_t, char *, size_t, uint32_t *, nghttp2_data_source *, void *);
typedef struct { nghttp2_data_source source; nghttp2_read read_callback; } nghttp2_data_provider;
typedef ssize_t (*nghttp2_length)(nghttp2_session *, uint8_t, int32_t, int32_t, int32_t, uint32_t, void *);
typedef int (*nghttp2_begin)(nghttp2_session *, const nghttp2_frame *, void *);
typedef int (*nghttp2_header)(
    nghttp2_session *, const nghttp2_frame *, const char *, size_t, const char *, size_t, uint8_t, void *);
typedef int (*nghttp2_chunk)(nghttp2_session *, uint8_t, int32_t, const char *, size_t, void *);
typedef int (*nghttp2_received)(nghttp2_session *, const nghttp2_frame *, void *);
typedef int (*nghttp2_closed)(nghttp2_session *, int32_t, uint32_t, void *);

const nghttp2_info *nghttp2_version(int);
const char *nghttp2_strerror(int);

int nghttp2_option_new(nghttp2_option **);
void nghttp2_option_set_no_auto_window_update(nghttp2_option *, int);
void nghttp2_option_set_no_closed_streams(nghttp2_option *, int);
void nghttp2_option_set_max_outbound_ack(nghttp2_option *, size_t);
void nghttp2_option_set_max_settings(nghttp2_option *, size_t);
void nghttp2_option_set_max_continuations(nghttp2_option *, size_t);
void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t);

int nghttp2_session_callbacks_new(nghttp2_session_callbacks **);
void nghttp2_session_callbacks_set_data_source_read_length_callback(nghttp2_session_callbacks *, nghttp2_length);
void nghttp2_session_callbacks_set_on_begin_headers_callback(nghttp2_session_callbacks *, nghttp2_begin);
void nghttp2_session_callbacks_set_on_header_callback(nghttp2_session_callbacks *, nghttp2_header);
void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(nghttp2_session_callbacks *, nghttp2_chunk);
void nghttp2_session_callbacks_set_on_frame_recv_callback(nghttp2_session_callbacks *, nghttp2_received);
void nghttp2_session_callbacks_set_on_stream_close_callback(nghttp2_session_callbacks *, nghttp2_closed);

int nghttp2_session_server_new2(nghttp2_session **, const nghttp2_session_callbacks *, void *, const nghttp2_option *);
int nghttp2_session_client_new2(nghttp2_session **, const nghttp2_session_callbacks *, void *, const nghttp2_option *);
void nghttp2_session_del(nghttp2_session *);
ssize_t nghttp2_session_mem_recv(nghttp2_session *, const char *, size_t);
ssize_t nghttp2_session_mem_send(nghttp2_session *, const char **);
int nghttp2_session_want_read(nghttp2_session *);
int nghttp2_session_want_write(nghttp2_session *);
int nghttp2_session_consume_connection(nghttp2_session *, size_t);
int nghttp2_session_consume_stream(nghttp2_session *, int32_t, size_t);
int nghttp2_session_set_local_window_size(nghttp2_session *, uint8_t, int32_t, int32_t);
int nghttp2_session_resume_data(nghttp2_session *, int32_t);
int nghttp2_session_get_stream_local_close(nghttp2_session *, int32_t);
int32_t nghttp2_session_get_last_proc_stream_id(nghttp2_session *);
size_t nghttp2_session_get_outbound_queue_size(nghttp2_session *);

int nghttp2_submit_settings(nghttp2_session *, uint8_t, const nghttp2_settings_entry *, size_t);
int32_t nghttp2_submit_request(
    nghttp2_session *, const void *, const nghttp2_nv *, size_t, const nghttp2_data_provider *, void *);
int nghttp2_submit_response(
    nghttp2_session *, int32_t, const nghttp2_nv *, size_t, const nghttp2_data_provider *);
int nghttp2_submit_trailer(nghttp2_session *, int32_t, const nghttp2_nv *, size_t);
int nghttp2_submit_rst_stream(nghttp2_session *, uint8_t, int32_t, uint32_t);
int nghttp2_submit_ping(nghttp2_session *, uint8_t, const char *);
int nghttp2_submit_shutdown_notice(nghttp2_session *);
int nghttp2_submit_goaway(nghttp2_session *, uint8_t, int32_t, uint32_t, const char *, size_t);
"""

ffi: Any = cffi.FFI()
ffi.cdef(_DECLARATIONS)
# The same functions of `ffi` would call these: callbacks are spared a Python function each.
buffer: Any = _cffi_backend.buffer
from_handle: Any = _cffi_backend.from_handle
memmove: Any = _cffi_backend.memmove
unpack: Any = _cffi_backend.unpack


class NoLibrary(Exception):
    """libnghttp2 is not installed, or is too old."""


class Library:
    """The functions of a loaded libnghttp2, without the prefix of their names, and its version."""

    def __init__(self, name: str = HTTP2_LIBRARY) -> None:
        """Looks all functions up. Raises NoLibrary."""
        try:
            library = ffi.dlopen(name)
        except OSError:
            raise NoLibrary(f"{name} is not installed (Debian's package is libnghttp2-14)") from None
        version = ffi.string(library.nghttp2_version(0).version_str).decode()
        for function in dir(library):
            try:
                setattr(self, function.removeprefix("nghttp2_"), getattr(library, function))
            except AttributeError:
                # The latest ones came with the answers to known attacks: a version without them is not safe.
                raise NoLibrary(f"{name} is version {version}, which lacks {function}") from None
        self.version: str = version

    def __getattr__(self, name: str) -> Any:  # for type checkers: all functions are attributes
        raise AttributeError(name)


def headers(*pairs: tuple[bytes, bytes], constant: bool = False) -> "Headers":
    """Returns an array of headers. nghttp2 copies them unless they are constant: then the array must exist for ever."""
    array = ffi.new("nghttp2_nv[]", len(pairs))
    kept = []
    for entry, (name, value) in zip(array, pairs, strict=True):
        entry.name, entry.value = ffi.from_buffer("char[]", name), ffi.from_buffer("char[]", value)
        entry.namelen, entry.valuelen = len(name), len(value)
        entry.flags = NO_COPY if constant else 0
        kept += [entry.name, entry.value, name, value]
    return Headers(array, len(pairs), kept)


class Headers:
    """An array of headers, with the bytes it points to."""

    __slots__ = ("_kept", "array", "count")

    def __init__(self, array: Any, count: int, kept: list[Any]) -> None:
        self.array = array
        self.count = count
        self._kept = kept
