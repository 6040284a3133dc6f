"""A real gRPC client that knows our control plane only by `xds:///NAME`.

Calls grpc.health.v1.Health/Check COUNT times and prints, per answering
endpoint, how many calls it served (the origin says its name in the initial
metadata), then waits for a line on standard input and does it again. Ends on
end of input. The messages are empty, so no generated code is needed.
"""
import collections
import sys

import grpc

target, count = sys.argv[1], int(sys.argv[2])
channel = grpc.insecure_channel(target)
check = channel.unary_unary(
    "/grpc.health.v1.Health/Check",
    request_serializer=lambda message: message,
    response_deserializer=lambda message: message,
)
while True:
    served = collections.Counter()
    for _ in range(count):
        _, call = check.with_call(b"", timeout=20, wait_for_ready=True)
        served[dict(call.initial_metadata()).get("x-origin", "?")] += 1
    print(" ".join(f"{name}={n}" for name, n in sorted(served.items())), flush=True)
    if not sys.stdin.readline():
        break
