"""Puts the client of `tidemark_client.py` to work against a running broker: `python3 scenario.py HOST:PORT`.

Prints `ok` when everything is as `docs/protocol.md` says; otherwise says what is not, and ends with a status
other than 0. The examples in the document are checked as well.
"""

import re
import sys
import time
from pathlib import Path
from typing import Any, Callable

import tidemark_client as tidemark
from tidemark_client import Acks, Api, Client, Code, Failed, Frame, Kind, OffsetQuery, Record, TopicPartition

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"
START = int(time.time() * 1000) - 3_600_000  # recent: retention goes by the timestamps of records
QUIET = 0.3  # seconds without a push that show that none is coming


class Wrong(Exception):
    """The broker, or the document, is not as it should be."""


def equal(what: str, seen: Any, expected: Any) -> None:
    if seen == expected:
        return
    if isinstance(seen, list) and isinstance(expected, list) and len(seen) == len(expected):
        for index, pair in enumerate(zip(seen, expected)):
            equal(f"{what}, at {index},", *pair)
    raise Wrong(f"{what} is\n    {repr(seen):.2000}\nand not\n    {repr(expected):.2000}")


def fails(what: str, code: Code, action: Callable[[], Any]) -> None:
    try:
        seen = action()
    except Failed as failed:
        equal(f"the code for {what} ({failed.message})", failed.code, code)
        if not failed.message:
            raise Wrong(f"{what} fails without a message") from None
        return
    raise Wrong(f"{what} does not fail with {code.name}, but gives {seen!r}")


# --- The examples in the document ---


def examples() -> dict:
    """The bytes of every block of hex, by name."""
    blocks = re.findall(r"^```hex name=(\S+)\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return {
        name: bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))
        for name, block in blocks
    }


EXAMPLE_TOPIC = TopicPartition(bytes.fromhex("8c0f7a3e5d1b4c2a9e6f0123456789ab"), 0)
EXAMPLE_RECORD = Record(b"user-7", b"hello", (), 4_000_000_000_000)
EXAMPLE_SETTINGS = {"cleanup_policy": "compact", "retention_ms": "86400000"}
MIB = 1 << 20


def example_requests() -> dict:
    """What this client sends where the document says what a client sends."""
    batch = tidemark.encode_batch([EXAMPLE_RECORD])
    produce = tidemark.ProducePartition(EXAMPLE_TOPIC, None, len(batch))
    fetch = tidemark.FetchPartition(EXAMPLE_TOPIC, None, 0, MIB)
    subscribe = tidemark.SubscribePartition(EXAMPLE_TOPIC, None, 0)
    request = Kind.REQUEST
    return {
        "metadata-request": Frame(request, Api.METADATA, 1, tidemark.MetadataRequest(None, [])),
        "create-topic-request": Frame(
            request, Api.CREATE_TOPIC, 2, tidemark.CreateTopicRequest("clicks", 1, None, {}, False, 30_000)
        ),
        "produce-request": Frame(
            request, Api.PRODUCE, 4, tidemark.ProduceRequest(Acks.ALL, 0, 30_000, [produce]), batch
        ),
        "fetch-request": Frame(request, Api.FETCH, 5, tidemark.FetchRequest(500, 1, MIB, [fetch])),
        "subscribe-request": Frame(
            request, Api.SUBSCRIBE, 6, tidemark.SubscribeRequest(MIB, MIB // 4, [subscribe])
        ),
        "credit": Frame(Kind.CREDIT, Api.SUBSCRIBE, 6, tidemark.CreditHeader(79)),
        "cancel": Frame(Kind.CANCEL, Api.SUBSCRIBE, 6, None),
    }


def example_answers(frames: dict) -> None:
    """What this client understands where the document says what a broker sends."""

    def ok(name: str) -> Any:
        return tidemark.result(frames[name].header)

    broker = tidemark.BrokerMetadata(1, "127.0.0.1", 9092, None, False)
    metadata = tidemark.MetadataResponse("demo", 1, 1, 3, [broker], [])
    equal("metadata-response", tidemark.metadata_of(ok("metadata-response")), metadata)
    equal("create-topic-response", ok("create-topic-response"), [EXAMPLE_TOPIC.topic_id, 1, 1, {}])
    fails("create-topic-failure", Code.TOPIC_EXISTS, lambda: ok("create-topic-failure"))
    equal("produce-response", ok("produce-response"), [[{"Ok": [0, 1, 0, 2, 1, 1, 0]}]])
    equal("fetch-response", ok("fetch-response"), [[{"Ok": [1, 0, 0, 79]}]])
    equal("subscribe-response", ok("subscribe-response"), [[{"Ok": [1, 0, 0]}]])
    equal("push", frames["push"].header, [list(EXAMPLE_TOPIC), {"Ok": [1, 0, 0, 79]}])
    equal("the partition of last-push", frames["last-push"].header[0], None)
    fails("last-push", Code.CANCELLED, lambda: tidemark.result(frames["last-push"].header[1]))
    for name in ("fetch-response", "push"):
        (batch,) = tidemark.decode_batches(frames[name].payload)
        equal(f"the records of {name}", batch.records, [EXAMPLE_RECORD._replace(offset=0)])


def document() -> None:
    blocks = examples()
    equal("preface", tidemark.preface(), blocks.pop("preface"))
    equal("settings", tidemark.unpack(blocks.pop("settings")), EXAMPLE_SETTINGS)
    frames = {name: Frame.decode(block) for name, block in blocks.items()}
    for name, frame in frames.items():
        equal(f"{name}, decoded and encoded", frame.encode().hex(" "), blocks[name].hex(" "))
    for name, frame in example_requests().items():
        equal(name, frame.encode().hex(" "), blocks[name].hex(" "))
    example_answers(frames)
    equal("the CRC-32C of 123456789", tidemark.crc32c(b"123456789"), 0xE3069283)
    hashes = re.findall(r"^\| `(\S+)` \| (-?\d+) \| (\d) \|$", DOCUMENT.read_text(), re.MULTILINE)
    equal("the number of hashes", len(hashes) >= 5, True)
    for key, value, partition in hashes:
        equal(f"the hash of {key}", tidemark.murmur2(key.encode()), int(value) & 0xFFFFFFFF)
        equal(f"the partition of {key}", tidemark.partition_of(key.encode(), 7), int(partition))
    for value, first in ((0, 0), (-1, 1), (1, 2), (-2, 3)):
        equal(f"the varint of {value}", tidemark.varint(value), bytes([first]))


# --- The broker ---


def records_to_write() -> list:
    """What could go wrong on the way: nothing, little, everything."""
    every_byte = bytes(range(256))
    shapes = [
        Record(b"key", b"value"),
        Record(None, b"no key"),
        Record(b"no value", None),
        Record(None, None),
        Record(b"", b""),
        Record(every_byte, every_byte[::-1]),
        Record(b"headers", b"v", (("trace", b"\x00\xff"), ("", b""), ("twice", b"1"), ("twice", None))),
        Record("Schlüssel".encode(), "Größe".encode(), (("Überschrift", "ä".encode()),)),
        Record(b"long", bytes(100_000)),
    ]
    # The last but one is earlier than the first, the last is the latest.
    times = [*range(0, 70, 10), -5, 1_000_000]
    return [record._replace(timestamp=START + each) for record, each in zip(shapes, times)]


def at(records: list, base_offset: int) -> list:
    """The records as they are read."""
    return [record._replace(offset=base_offset + index) for index, record in enumerate(records)]


def read_all(client: Client, topic: bytes, partition: int, max_bytes: int = MIB) -> list:
    records, offset = [], 0
    while True:
        fetched = client.fetch(topic, partition, offset, max_bytes=max_bytes)
        records += fetched.records
        offset = fetched.next_offset
        if offset >= fetched.high_watermark:
            return records


def topics(client: Client) -> bytes:
    created = client.create_topic("foreign", partitions=3)
    equal("partitions", created.partitions, 3)
    metadata = client.metadata(["foreign", "absent"])
    equal("topics by name", [(each.name, each.id) for each in metadata.topics], [("foreign", created.id)])
    equal("partitions in metadata", len(metadata.topics[0].partitions), 3)
    equal("leaders", {each.leader for each in metadata.topics[0].partitions}, {metadata.broker_id})
    equal("brokers", metadata.broker_id in [each.id for each in metadata.brokers], True)
    equal("topics by id", client.metadata([], [created.id]).topics, metadata.topics)
    return created.id


def produce_and_fetch(client: Client, topic: bytes) -> None:
    written = records_to_write()
    plain = client.produce(topic, 0, written)
    equal("the first receipt", (plain.base_offset, plain.record_count), (0, len(written)))
    zipped = client.produce(topic, 0, written, codec=tidemark.CODEC_GZIP)
    equal("base offset of the second batch", zipped.base_offset, len(written))
    expected = at(written + written, 0)
    equal("what was written", read_all(client, topic, 0), expected)
    equal("what was written, batch by batch", read_all(client, topic, 0, max_bytes=1), expected)
    for offset in (0, 3, len(written) - 1, len(written), len(written) + 4):
        equal(f"from offset {offset}", client.fetch(topic, 0, offset).records, expected[offset:])
    end = client.fetch(topic, 0, len(expected))
    equal("the end", (end.records, end.high_watermark), ([], len(expected)))


def keyed(client: Client, topic: bytes) -> None:
    """One record at a time, without waiting, to the partition of its key; 0 is left to others."""
    keys = [key for key in (b"key-%d" % index for index in range(50)) if tidemark.partition_of(key, 3)]
    for key in keys:
        client.produce(topic, tidemark.partition_of(key, 3), [Record(key, b"v")], acks=Acks.NONE)
    # Appended in the order in which they were sent: the receipt of the last is behind all of them.
    for partition in (1, 2):
        client.produce(topic, partition, [Record(None, b"end")])
        mine = [key for key in keys if tidemark.partition_of(key, 3) == partition]
        seen = [record.key for record in read_all(client, topic, partition)]
        equal(f"keys in partition {partition}", seen, [*mine, None])


def offsets(client: Client, topic: bytes) -> None:
    written = records_to_write()
    count = len(written)

    def listed(query: OffsetQuery, timestamp: int = 0) -> tuple:
        found = client.list_offsets(topic, 0, query, timestamp)
        return found.offset, found.timestamp_ms

    equal("earliest", listed(OffsetQuery.EARLIEST), (0, -1))
    equal("latest", listed(OffsetQuery.LATEST), (2 * count, -1))
    equal("at a timestamp", listed(OffsetQuery.TIMESTAMP, START + 20), (2, START + 20))
    equal("after a timestamp", listed(OffsetQuery.TIMESTAMP, START + 21), (3, START + 30))
    equal("after all but the last", listed(OffsetQuery.TIMESTAMP, START + 61), (count - 1, START + 1_000_000))
    equal("after all", listed(OffsetQuery.TIMESTAMP, START + 1_000_001), (2 * count, -1))
    equal("max timestamp", listed(OffsetQuery.MAX_TIMESTAMP)[1], START + 1_000_000)


def order_and_cancellation(client: Client, topic: bytes) -> None:
    end = client.list_offsets(topic, 0, OffsetQuery.LATEST).offset
    waiting = client.send_fetch(topic, 0, end, max_wait_ms=60_000)
    behind = client.send(Api.METADATA, tidemark.MetadataRequest([], []))
    client.cancel(Api.FETCH, waiting)
    tidemark.metadata_of(client.answer(behind)[0])
    fails("a cancelled fetch", Code.CANCELLED, lambda: client.fetched(waiting, end))


def quiet(subscription: tidemark.Subscription) -> None:
    """No batches for a while; a push may always tell a high watermark."""
    deadline = time.monotonic() + QUIET
    try:
        while True:
            push = subscription.next(max(deadline - time.monotonic(), 0))
            equal("what is pushed without credit", push.size, 0)
    except TimeoutError:
        pass


def next_batch(subscription: tidemark.Subscription) -> tidemark.Push:
    while True:
        push = subscription.next()
        if push.size:
            return push


def subscribe(client: Client, topic: bytes) -> None:
    """Credit for a byte buys one batch; the debt has to be paid before there is another."""
    written = records_to_write()
    count = len(written)
    place = TopicPartition(topic, 0)
    with Client(*client.peer) as other:
        subscription = other.subscribe({place: 3}, credit_bytes=1, max_push_bytes=1)
        equal("the start", subscription.started(place).high_watermark, 2 * count)
        push = next_batch(subscription)
        equal("the first push", (push.partition, push.records), (place, at(written, 0)[3:]))
        quiet(subscription)
        subscription.credit(push.size - 1)
        quiet(subscription)
        subscription.credit(1)
        push = next_batch(subscription)
        equal("the push after the refill", push.records, at(written, count))

        subscription.credit(push.size + MIB)
        receipt = client.produce(topic, 0, [Record(None, b"news", (), START)])
        news = next_batch(subscription)
        equal("news", news.records, at([Record(None, b"news", (), START)], receipt.base_offset))
        equal("a request among pushes", other.metadata([]).topics, [])

        equal("the end of a subscription", subscription.cancel(), Code.CANCELLED)
        client.produce(topic, 0, [Record(None, b"unheard")])
        equal("a request after the subscription", other.metadata([]).topics, [])


def last_pushes(client: Client, topic: bytes) -> None:
    """A subscription ends with one push of no partition, also when nobody has cancelled it."""
    nowhere = TopicPartition(bytes(15) + b"\x01", 0)
    with Client(*client.peer) as other:
        for offsets in ({}, {nowhere: 0}):
            subscription = other.subscribe(offsets)
            equal("the end without a partition", subscription.ended(), Code.CANCELLED)
        # The number of a live subscription is taken; with the last push it is free.
        alive = other.subscribe({TopicPartition(topic, 0): 0}, credit_bytes=0)
        again = tidemark.SubscribeRequest(0, MIB, [])
        other.send_again(Api.SUBSCRIBE, alive.correlation, again)
        fails("a number in use", Code.INVALID_REQUEST, lambda: other.answer(alive.correlation))
        equal("the end by a cancel", alive.cancel(), Code.CANCELLED)
        other.cancel(Api.SUBSCRIBE, alive.correlation)
        other.send_again(Api.SUBSCRIBE, alive.correlation, again)
        other.answer(alive.correlation)


def partitions_side_by_side(client: Client, topic: bytes) -> None:
    """What is wrong with one partition leaves the others alone."""
    good = tidemark.encode_batch([Record(None, b"good", (), START)])
    places = [TopicPartition(topic, 0), TopicPartition(topic, 9), TopicPartition(topic, 0), TopicPartition(topic, 1)]
    sizes = [len(good), len(good), 0, len(good)]
    targets = [tidemark.ProducePartition(place, None, size) for place, size in zip(places, sizes)]
    request = tidemark.ProduceRequest(Acks.ALL, 0, 30_000, targets)
    (results,), _ = client.call(Api.PRODUCE, request, 3 * good)
    equal("which succeed", ["Ok" in each for each in results], [True, False, False, True])
    fails("a partition too many", Code.UNKNOWN_TOPIC_OR_PARTITION, lambda: tidemark.result(results[1]))
    fails("no batch", Code.INVALID_BATCH, lambda: tidemark.result(results[2]))
    fails("a payload too long", Code.INVALID_REQUEST, lambda: client.call(Api.PRODUCE, request, 4 * good))

    def sizes_of(*partitions: int) -> list:
        wanted = [tidemark.FetchPartition(TopicPartition(topic, each), None, 0, 1) for each in partitions]
        (fetched,), _ = client.call(Api.FETCH, tidemark.FetchRequest(0, 1, MIB, wanted))
        return [tidemark.result(each)[3] > 0 for each in fetched]

    equal("who is served, a batch being too long", (sizes_of(0, 1), sizes_of(1, 0)), ([True, False],) * 2)


def odd_batches(client: Client, topic: bytes) -> None:
    """What the document says is not checked, and what is."""

    def outcome(batch: bytes) -> Any:
        target = tidemark.ProducePartition(TopicPartition(topic, 2), None, len(batch))
        (results,), _ = client.call(Api.PRODUCE, tidemark.ProduceRequest(Acks.ALL, 0, 30_000, [target]), batch)
        return tidemark.result(results[0])

    record = Record(None, b"odd", (), START)
    batch = tidemark.encode_batch([record])
    base_offset = outcome((77).to_bytes(8, "big") + batch[8:12] + (5).to_bytes(4, "big") + batch[16:])[0]
    rest = bytearray(batch[21:])
    rest[6:14] = (START - 3).to_bytes(8, "big")  # base timestamp
    rest[14:22] = (START - 3).to_bytes(8, "big")  # max timestamp
    rest[41] = 0x55  # attributes of the record
    outcome(batch[:17] + tidemark.crc32c(bytes(rest)).to_bytes(4, "big") + bytes(rest))
    expected = [record._replace(offset=base_offset), Record(None, b"odd", (), START - 3, base_offset + 1)]
    equal("odd batches", client.fetch(topic, 2, base_offset).records, expected)
    negative = batch[:8] + bytes([255]) * 4 + batch[12:]
    fails("a negative length", Code.INVALID_BATCH, lambda: outcome(negative))
    many = tidemark.encode_batch([record._replace(headers=(("h", None),) * 1_025)])
    fails("too many headers", Code.INVALID_BATCH, lambda: outcome(many))


def nesting(client: Client, _topic: bytes) -> None:
    """Arrays in a field that the broker skips; the request itself is a level."""

    def nested(levels: int) -> list:
        return [nested(levels - 1)] if levels > 1 else []

    client.call(Api.METADATA, [[], [], nested(tidemark.MAX_NESTING - 1)])
    deepest = nested(tidemark.MAX_NESTING)
    equal("the deepest header", tidemark.unpack(tidemark.pack(deepest)), deepest)
    client.call(Api.METADATA, [[], [], [0] * 20_000])
    deeper = [[], [], deepest]
    fails("nesting", Code.INVALID_REQUEST, lambda: client.call(Api.METADATA, deeper))
    long = ["\x01" * 4_000_000, []]
    fails("a long str for a list", Code.INVALID_REQUEST, lambda: client.call(Api.METADATA, long))


def without_timestamps(client: Client, topic: bytes) -> None:
    """They have -1, and are found by it only."""
    created = client.create_topic("timeless", settings={"retention_ms": "unlimited"})
    client.produce(created.id, 0, [Record(None, b"v", (), -1)])

    def listed(query: OffsetQuery, timestamp: int = 0) -> tuple:
        found = client.list_offsets(created.id, 0, query, timestamp)
        return found.offset, found.timestamp_ms

    equal("from 0", listed(OffsetQuery.TIMESTAMP, 0), (1, -1))
    equal("from -1", listed(OffsetQuery.TIMESTAMP, -1), (0, -1))
    equal("from -100", listed(OffsetQuery.TIMESTAMP, -100), (0, -1))
    equal("max timestamp of none", listed(OffsetQuery.MAX_TIMESTAMP), (1, -1))
    client.delete_topic("timeless")


def errors(client: Client, topic: bytes) -> None:
    absent = bytes(15) + b"\x01"
    end = client.list_offsets(topic, 0, OffsetQuery.LATEST).offset
    fails("an unknown API", Code.UNSUPPORTED_API, lambda: client.call(999, []))
    fails("a request that is none", Code.INVALID_REQUEST, lambda: client.call(Api.METADATA, ["no list"]))
    fails("a topic twice", Code.TOPIC_EXISTS, lambda: client.create_topic("foreign"))
    fails("a bad name", Code.INVALID_TOPIC_NAME, lambda: client.create_topic("a/b"))
    fails("no partitions", Code.INVALID_PARTITIONS, lambda: client.create_topic("none", partitions=0))
    fails("a bad setting", Code.INVALID_CONFIG, lambda: client.create_topic("bad", settings={"no": "1"}))
    fails("an offset too large", Code.OFFSET_OUT_OF_RANGE, lambda: client.fetch(topic, 0, end + 1))
    fails("a partition too many", Code.UNKNOWN_TOPIC_OR_PARTITION, lambda: client.fetch(topic, 3, 0))
    fails(
        "a topic that is not",
        Code.UNKNOWN_TOPIC_OR_PARTITION,
        lambda: client.produce(absent, 0, [Record(None, b"lost")]),
    )
    fails("a name that is not", Code.UNKNOWN_TOPIC_OR_PARTITION, lambda: client.delete_topic("absent"))
    damaged(client, topic)
    nowhere = TopicPartition(absent, 0)
    with Client(*client.peer) as other:
        subscription = other.subscribe({nowhere: 0})
        fails("a subscription", Code.UNKNOWN_TOPIC_OR_PARTITION, lambda: subscription.started(nowhere))


def damaged(client: Client, topic: bytes) -> None:
    """A batch with a wrong CRC is refused, and nothing of it is appended."""
    before = client.list_offsets(topic, 1, OffsetQuery.LATEST)
    batch = bytearray(tidemark.encode_batch([Record(None, b"damaged")]))
    batch[-2] ^= 1
    target = tidemark.ProducePartition(TopicPartition(topic, 1), None, len(batch))
    request = tidemark.ProduceRequest(Acks.ALL, 0, 30_000, [target])
    answer, _ = client.call(Api.PRODUCE, request, bytes(batch))
    fails("a wrong CRC", Code.DAMAGED_BATCH, lambda: tidemark.result(answer[0][0]))
    equal("the end after a refusal", client.list_offsets(topic, 1, OffsetQuery.LATEST), before)


def delete(client: Client, topic: bytes) -> None:
    fails(
        "another topic of the name",
        Code.UNKNOWN_TOPIC_OR_PARTITION,
        lambda: client.delete_topic("foreign", bytes(15) + b"\x01"),
    )
    equal("the topic that was deleted", client.delete_topic("foreign", topic), topic)
    equal("topics after all", client.metadata(["foreign"]).topics, [])
    fails("a deleted topic", Code.UNKNOWN_TOPIC_OR_PARTITION, lambda: client.fetch(topic, 0, 0))


STEPS = (
    produce_and_fetch,
    keyed,
    offsets,
    order_and_cancellation,
    subscribe,
    last_pushes,
    partitions_side_by_side,
    odd_batches,
    nesting,
    without_timestamps,
    errors,
    delete,
)


def main() -> None:
    host, port = sys.argv[1].rsplit(":", 1)
    document()
    with Client(host, int(port)) as client:
        equal("the version", client.version, 1)
        topic = topics(client)
        for step in STEPS:
            step(client, topic)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main()
    except (Wrong, Failed, tidemark.Malformed, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print("ok")
