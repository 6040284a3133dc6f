"""gRPC as its own library speaks it: `tables_by_grpc.py serve ADDRESS`, `tables_by_grpc.py call ADDRESS`."""

import sys
from concurrent import futures

import grpc

ROW, ROWS, UPLOAD = b"r" * 1000, 2000, [b"u" * 65536] * 40


def read(request, context):
    context.set_trailing_metadata((("rows", str(ROWS)), ("digest-bin", b"\x00\xff")))
    for row in range(ROWS):
        yield b"%d %s %s" % (row, request, ROW)


def write(requests, context):
    return str(sum(map(len, requests))).encode()


def refuse(request, context):
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room for \N{GREEK SMALL LETTER ALPHA}")


class Tables(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/etl.Tables/Read": grpc.unary_stream_rpc_method_handler(read),
            "/etl.Tables/Write": grpc.stream_unary_rpc_method_handler(write),
            "/etl.Tables/Refuse": grpc.unary_unary_rpc_method_handler(refuse),
        }.get(details.method)


def serve(address):
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Tables(),))
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def call(address):
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        wait = {"timeout": 60, "wait_for_ready": True}
        rows = channel.unary_stream("/etl.Tables/Read")(b"orders", **wait)
        read = list(rows)
        print(len(read), read[-1][:20], rows.code(), rows.trailing_metadata())
        print(channel.stream_unary("/etl.Tables/Write")(iter(UPLOAD), **wait))
        for method in ("Refuse", "Unknown"):
            try:
                channel.unary_unary(f"/etl.Tables/{method}")(b"", **wait)
            except grpc.RpcError as error:
                print(error.code(), error.details())


{"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])
