"""grpc.reflection, versions 1 and 1alpha: describes the services to callers such as grpcurl, for any transport."""

from collections.abc import Callable, Sequence

from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as pb

from convoy.service.errors import BadRequest, ConvoyError, UnknownCaller
from convoy.service.frontend.status import Code
from convoy.service.frontend.transport.interface import Service, Stream
from convoy.service.frontend.wire import Parser

_ALPHA = pb.DESCRIPTOR.services_by_name["ServerReflection"]
_V1 = _ALPHA.full_name.replace("v1alpha", "v1")


class Reflection:
    """Descriptions of services. The messages of both versions are the same on the wire."""

    def __init__(self, services: Sequence[ServiceDescriptor]) -> None:
        self._pool = _described([*services, _ALPHA])
        self._names = sorted([*(service.full_name for service in services), _ALPHA.full_name, _V1])
        self._parser = Parser(_ALPHA.methods_by_name["ServerReflectionInfo"].input_type, None)
        self.services = [Service(name, {}, {"ServerReflectionInfo": self._info}) for name in (_ALPHA.full_name, _V1)]

    async def _info(self, stream: Stream) -> ConvoyError | None:
        while (received := await stream.read()) is not None:
            try:
                if received.caller is not None:
                    received.caller.check()
                request: pb.ServerReflectionRequest = self._parser.parse(received.data)[0]
            except (BadRequest, UnknownCaller) as error:
                return error
            response = self._answer(request)
            response.valid_host = request.host
            response.original_request.CopyFrom(request)
            await stream.write(response.SerializeToString())
        return None

    def _answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        pool = self._pool
        match request.WhichOneof("message_request"):
            case "list_services":
                names = [pb.ServiceResponse(name=name) for name in self._names]
                return pb.ServerReflectionResponse(list_services_response=pb.ListServiceResponse(service=names))
            case "file_by_filename":
                return _file(lambda: pool.FindFileByName(request.file_by_filename))
            case "file_containing_symbol":
                return _file(lambda: pool.FindFileContainingSymbol(request.file_containing_symbol))
            case "file_containing_extension":
                wanted = request.file_containing_extension
                return _file(lambda: _extended(pool, wanted.containing_type, wanted.extension_number))
            case "all_extension_numbers_of_type":
                return self._extension_numbers(request.all_extension_numbers_of_type)
        return _error(Code.INVALID_ARGUMENT, "request asks for nothing")

    def _extension_numbers(self, name: str) -> pb.ServerReflectionResponse:
        try:
            message = self._pool.FindMessageTypeByName(name)
        except KeyError:
            return _error(Code.NOT_FOUND, "not found")
        numbers = sorted(extension.number for extension in self._pool.FindAllExtensions(message))
        found = pb.ExtensionNumberResponse(base_type_name=message.full_name, extension_number=numbers)
        return pb.ServerReflectionResponse(all_extension_numbers_response=found)


def _file(find: Callable[[], FileDescriptor]) -> pb.ServerReflectionResponse:
    try:
        file = find()
    except KeyError:
        return _error(Code.NOT_FOUND, "not found")
    files: dict[str, FileDescriptor] = {}
    _add_with_imports(file, files)
    found = pb.FileDescriptorResponse(file_descriptor_proto=[each.serialized_pb for each in files.values()])
    return pb.ServerReflectionResponse(file_descriptor_response=found)


def _extended(pool: DescriptorPool, name: str, number: int) -> FileDescriptor:
    extension = pool.FindExtensionByNumber(pool.FindMessageTypeByName(name), number)
    return pool.FindFileContainingSymbol(extension.full_name)


def _add_with_imports(file: FileDescriptor, found: dict[str, FileDescriptor]) -> None:
    if file.name not in found:
        found[file.name] = file
        for imported in file.dependencies:
            _add_with_imports(imported, found)


def _error(code: Code, message: str) -> pb.ServerReflectionResponse:
    return pb.ServerReflectionResponse(error_response=pb.ErrorResponse(error_code=code, error_message=message))


def _described(services: Sequence[ServiceDescriptor]) -> DescriptorPool:
    """Returns one pool with all services, because the Open Inference Protocol's messages are in their own pool."""
    pool = DescriptorPool()
    for service in services:
        file = FileDescriptorProto()
        service.file.CopyToProto(file)
        pool.Add(file)
    # The library contains only version 1alpha; version 1 differs from it only in name.
    alpha = FileDescriptorProto()
    _ALPHA.file.CopyToProto(alpha)
    pool.Add(text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto()))
    return pool
