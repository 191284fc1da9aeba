"""What grpcurl does with the options that the pages use, by the server's reflection, without any `.proto` file.

`grpcurl -plaintext [-d JSON|@] HOST:PORT list|describe|SERVICE/METHOD`
"""

import argparse
import sys
from pathlib import Path

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def install(folder: Path) -> None:
    """Puts it into a folder for programs, under the name of what it plays."""
    program = folder / "grpcurl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} "$@"\n')
    program.chmod(0o755)


def main() -> None:
    parser = argparse.ArgumentParser(prog="grpcurl")
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-d", dest="data", default="{}")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("server")
    parser.add_argument("method")
    options = parser.parse_args()
    with grpc.insecure_channel(options.server) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        if options.method == "list":
            print("\n".join(database.get_services()))
            return
        service, _, name = options.method.partition("/")
        method = DescriptorPool(database).FindServiceByName(service).FindMethodByName(name)
        text = sys.stdin.read() if options.data == "@" else options.data
        request = json_format.Parse(text, GetMessageClass(method.input_type)())
        answer = channel.unary_unary(
            f"/{options.method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )(request, timeout=30, metadata=[tuple(header.split(": ", 1)) for header in options.headers])
        print(json_format.MessageToJson(answer))


if __name__ == "__main__":
    main()
