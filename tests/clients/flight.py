"""A real Arrow Flight server and client, told on standard input what to move.

    flight.py serve            prints the port it listens on, ends on end of input
    flight.py client LOCATION  reads lines "get ROWS PER_BATCH" and "put ROWS
                               PER_BATCH", and prints for each the rows and the
                               checksum that it and the server counted:
                               "ROWS CHECKSUM ROWS CHECKSUM"

A row is 64 bytes. The checksum is a CRC-32 over all rows in their order, so
one that is lost, repeated or swapped shows; batches may be of any size.
"""
import json
import random
import sys
import zlib

import pyarrow as pa
import pyarrow.flight as flight

WIDTH = 64
SCHEMA = pa.schema([("row", pa.binary(WIDTH))])
BLOCK = random.Random(1).randbytes(1 << 20)


def batches(rows, per_batch):
    """`rows` rows, no two batches alike."""
    at = 0
    while at < rows:
        count = min(per_batch, rows - at)
        data = bytearray(count * WIDTH)
        for begin in range(0, len(data), len(BLOCK)):
            piece = BLOCK[: len(data) - begin]
            data[begin : begin + len(piece)] = piece
            data[begin : begin + 8] = (at * WIDTH + begin).to_bytes(8, "little")
        array = pa.Array.from_buffers(pa.binary(WIDTH), count, [None, pa.py_buffer(data)])
        yield pa.record_batch([array], schema=SCHEMA)
        at += count


class Tally:
    """Rows and their checksum."""

    def __init__(self):
        self.rows, self.sum = 0, 0

    def add(self, batch):
        column = batch.column(0)
        begin = column.offset * WIDTH
        data = memoryview(column.buffers()[1])[begin : begin + len(column) * WIDTH]
        self.rows, self.sum = self.rows + len(column), zlib.crc32(data, self.sum)
        return batch

    def __str__(self):
        return f"{self.rows} {self.sum:08x}"


class Server(flight.FlightServerBase):
    told = Tally()

    def do_get(self, context, ticket):
        rows, per_batch = json.loads(ticket.ticket)
        Server.told = tally = Tally()
        return flight.GeneratorStream(SCHEMA, (tally.add(b) for b in batches(rows, per_batch)))

    def do_put(self, context, descriptor, reader, writer):
        tally = Tally()
        for chunk in reader:
            tally.add(chunk.data)
        writer.write(str(tally).encode())

    def do_action(self, context, action):
        return [str(Server.told).encode()]


def get(client, rows, per_batch):
    mine = Tally()
    for chunk in client.do_get(flight.Ticket(json.dumps([rows, per_batch]).encode())):
        mine.add(chunk.data)
    (theirs,) = client.do_action("told")
    return f"{mine} {theirs.body.to_pybytes().decode()}"


def put(client, rows, per_batch):
    mine = Tally()
    writer, answer = client.do_put(flight.FlightDescriptor.for_path("rows"), SCHEMA)
    for batch in batches(rows, per_batch):
        writer.write_batch(mine.add(batch))
    writer.done_writing()
    theirs = answer.read().to_pybytes().decode()
    writer.close()
    return f"{mine} {theirs}"


def main():
    if sys.argv[1] == "serve":
        server = Server("grpc+tcp://127.0.0.1:0")
        print(server.port, flush=True)
        sys.stdin.read()
        return
    client = flight.connect(sys.argv[2])
    for line in sys.stdin:
        what, rows, per_batch = line.split()
        print({"get": get, "put": put}[what](client, int(rows), int(per_batch)), flush=True)


main()
