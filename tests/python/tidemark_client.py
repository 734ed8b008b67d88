"""A client for Tidemark's native protocol: a second implementation of the client side of `docs/protocol.md`.

It is written from that document alone, with the standard library alone, and shows that the document is enough.
It is meant to be read next to it: the parts come in the order of its sections. It is not meant to be fast.

    with Client("127.0.0.1", 9092) as client:
        topic = client.create_topic("clicks", partitions=1)
        client.produce(topic.id, 0, [Record(key=b"user-7", value=b"hello")])
        for record in client.fetch(topic.id, 0, offset=0).records:
            print(record.offset, record.value)
"""

import socket
import struct
import time
import zlib
from collections import deque
from enum import IntEnum
from typing import Any, NamedTuple, Optional, Sequence

MAX_FRAME = 67_108_864
MAX_HEADER = 4_194_304
MAX_ELEMENTS = 100_000
MAX_NESTING = 24
MAX_DECOMPRESSED = 134_217_728


class Malformed(Exception):
    """The broker sent something that is not in the document."""


class Failed(Exception):
    """The broker answered with a `Failure`."""

    def __init__(self, code: int, message: str):
        super().__init__(f"{error_name(code)}: {message}")
        self.code = code
        self.message = message


class Reader:
    """Takes values off the front of some bytes."""

    def __init__(self, data: bytes):
        self.data = data
        self.at = 0

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        if not 0 <= size <= self.left():
            raise Malformed(f"{size} bytes expected, {self.left()} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "big", signed=signed)

    def varint(self, max_bytes: int = 5) -> int:
        value = 0
        for group in range(max_bytes):
            byte = self.integer(1)
            value |= (byte & 0x7F) << 7 * group
            if byte < 0x80:
                return value >> 1 ^ -(value & 1)
        raise Malformed(f"a varint of more than {max_bytes} bytes")

    def sized(self) -> Optional[bytes]:
        """Bytes behind their length as a varint, where -1 stands for none."""
        size = self.varint()
        return None if size == -1 else self.take(size)


# --- 1. The connection ---

LOWEST_VERSION = 1
HIGHEST_VERSION = 1
PREFACE = struct.Struct(">4sHH")


def preface() -> bytes:
    return PREFACE.pack(b"TIDE", LOWEST_VERSION, HIGHEST_VERSION)


def negotiate(answer: bytes) -> int:
    """The version that both sides speak."""
    magic, lowest, highest = PREFACE.unpack(answer)
    if magic != b"TIDE" or lowest > highest:
        raise Malformed(f"not a preface: {answer.hex()}")
    version = min(highest, HIGHEST_VERSION)
    if version < max(lowest, LOWEST_VERSION):
        raise Malformed(f"the broker speaks versions {lowest} to {highest}")
    return version


# --- 2. Frames ---

FRAME_HEAD = struct.Struct(">IBBHII")
FRAME_START = FRAME_HEAD.size + 4  # the header begins behind the CRC


class Kind(IntEnum):
    REQUEST = 1
    RESPONSE = 2
    PUSH = 3
    CREDIT = 4
    CANCEL = 5


class Frame(NamedTuple):
    kind: int
    api: int
    correlation: int
    header: Any
    payload: bytes = b""

    def encode(self) -> bytes:
        header = pack(self.header)
        length = FRAME_START - 4 + len(header) + len(self.payload)
        head = FRAME_HEAD.pack(length, self.kind, 0, self.api, self.correlation, len(header))
        crc = zlib.crc32(header, zlib.crc32(head))
        return head + crc.to_bytes(4, "big") + header + self.payload

    @classmethod
    def decode(cls, data: bytes) -> "Frame":
        """Decodes exactly one frame."""
        reader = Reader(data)
        head = reader.take(FRAME_HEAD.size)
        length, kind, flags, api, correlation, header_length = FRAME_HEAD.unpack(head)
        crc = reader.integer(4)
        if length != len(data) - 4 or header_length > min(MAX_HEADER, reader.left()):
            raise Malformed(f"a frame of length {length} with a header of {header_length}")
        header = reader.take(header_length)
        if crc != zlib.crc32(header, zlib.crc32(head)):
            raise Malformed("a frame with a wrong CRC")
        if flags != 0 or kind not in list(Kind):
            raise Malformed(f"a frame of kind {kind} with flags {flags:#x}")
        return cls(kind, api, correlation, unpack(header), reader.take(reader.left()))


def frame_length(start: bytes) -> int:
    """How long a frame is, all in all, by its first four bytes."""
    length = int.from_bytes(start[:4], "big")
    if not FRAME_START - 4 <= length <= MAX_FRAME:
        raise Malformed(f"a frame of length {length}")
    return 4 + length


# --- 3. MessagePack headers ---

UNSIGNED = ((1 << 8, 0xCC, 1), (1 << 16, 0xCD, 2), (1 << 32, 0xCE, 4), (1 << 64, 0xCF, 8))
SIGNED = ((1 << 7, 0xD0, 1), (1 << 15, 0xD1, 2), (1 << 31, 0xD2, 4), (1 << 63, 0xD3, 8))


def pack(value: Any) -> bytes:
    """MessagePack of a value, in its shortest form; structures are tuples."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _pack_integer(value)
    if isinstance(value, str):
        data = value.encode()
        return _pack_length(len(data), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + data
    if isinstance(value, bytes):
        return _pack_length(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, (list, tuple)):
        start = _pack_length(len(value), 0x90, 16, (None, 0xDC, 0xDD))
        return start + b"".join(map(pack, value))
    if isinstance(value, dict):
        start = _pack_length(len(value), 0x80, 16, (None, 0xDE, 0xDF))
        return start + b"".join(pack(key) + pack(item) for key, item in value.items())
    raise TypeError(f"no MessagePack for {type(value).__name__}")


def _pack_integer(value: int) -> bytes:
    if -32 <= value < 128:
        return (value & 0xFF).to_bytes(1, "big")
    for limit, marker, size in UNSIGNED if value > 0 else SIGNED:
        if -limit <= value < limit:
            return bytes([marker]) + value.to_bytes(size, "big", signed=value < 0)
    raise OverflowError(value)


def _pack_length(length: int, short: int, short_limit: int, markers: Sequence[Optional[int]]) -> bytes:
    if length < short_limit:
        return bytes([short | length])
    for marker, size in zip(markers, (1, 2, 4)):
        if marker is not None and length < 1 << 8 * size:
            return bytes([marker]) + length.to_bytes(size, "big")
    raise OverflowError(length)


def unpack(data: bytes) -> Any:
    """The one MessagePack value in these bytes; arrays become lists."""
    reader = Reader(data)
    value = _unpack(reader, 0)
    if reader.left():
        raise Malformed(f"{reader.left()} bytes behind a header")
    return value


def _unpack(reader: Reader, depth: int) -> Any:
    marker = reader.integer(1)
    if marker < 0x80:
        return marker
    if marker >= 0xE0:
        return marker - 0x100
    if marker < 0x90:
        return _unpack_map(reader, marker & 0x0F, depth)
    if marker < 0xA0:
        return _unpack_array(reader, marker & 0x0F, depth)
    if marker < 0xC0:
        return _unpack_text(reader, marker & 0x1F)
    return _unpack_marked(reader, marker, depth)


def _unpack_marked(reader: Reader, marker: int, depth: int) -> Any:
    match marker:
        case 0xC0:
            return None
        case 0xC2 | 0xC3:
            return marker == 0xC3
        case 0xC4 | 0xC5 | 0xC6:
            return reader.take(reader.integer(1 << marker - 0xC4))
        case 0xCC | 0xCD | 0xCE | 0xCF:
            return reader.integer(1 << marker - 0xCC)
        case 0xD0 | 0xD1 | 0xD2 | 0xD3:
            return reader.integer(1 << marker - 0xD0, signed=True)
        case 0xD9 | 0xDA | 0xDB:
            return _unpack_text(reader, reader.integer(1 << marker - 0xD9))
        case 0xDC | 0xDD:
            return _unpack_array(reader, reader.integer(2 << marker - 0xDC), depth)
        case 0xDE | 0xDF:
            return _unpack_map(reader, reader.integer(2 << marker - 0xDE), depth)
        case _:
            return _unpack_foreign(reader, marker)


def _unpack_foreign(reader: Reader, marker: int) -> bytes:
    """Floats and extensions: version 1 has none, but a field that is skipped may hold anything."""
    match marker:
        case 0xCA | 0xCB:
            return reader.take(4 << marker - 0xCA)
        case 0xC7 | 0xC8 | 0xC9:
            return reader.take(1 + reader.integer(1 << marker - 0xC7))
        case 0xD4 | 0xD5 | 0xD6 | 0xD7 | 0xD8:
            return reader.take(1 + (1 << marker - 0xD4))
    raise Malformed(f"{marker:#04x} is not MessagePack")


def _unpack_text(reader: Reader, size: int) -> str:
    try:
        return reader.take(size).decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"text that is not UTF-8: {error}") from error


def _unpack_array(reader: Reader, length: int, depth: int) -> list:
    _check_bounds(length, depth)
    return [_unpack(reader, depth + 1) for _ in range(length)]


def _unpack_map(reader: Reader, length: int, depth: int) -> dict:
    _check_bounds(length, depth)
    entries = {}
    for _ in range(length):
        key = _unpack(reader, depth + 1)
        if not isinstance(key, (str, int, bytes, type(None))):
            raise Malformed(f"a map with the key {key!r}")
        entries[key] = _unpack(reader, depth + 1)
    return entries


def _check_bounds(length: int, depth: int) -> None:
    if depth >= MAX_NESTING:
        raise Malformed("a header is nested too deep")
    if length > MAX_ELEMENTS:
        raise Malformed(f"{length} elements in a list or map")


def structure(cls: type, value: Any) -> Any:
    """An array as a structure. Elements that it has at its end and we do not know are skipped."""
    known = len(cls._fields)
    if not isinstance(value, list) or len(value) < known:
        raise Malformed(f"{value!r} is not a {cls.__name__}")
    return cls(*value[:known])


def result(value: Any) -> Any:
    """What is in an `Ok`; an `Err` is raised."""
    if isinstance(value, dict) and len(value) == 1:
        if "Ok" in value:
            return value["Ok"]
        if "Err" in value:
            failure = structure(Failure, value["Err"])
            raise Failed(failure.code, failure.message)
    raise Malformed(f"{value!r} is not a result")


class Failure(NamedTuple):
    code: int
    message: str


class TopicPartition(NamedTuple):
    topic_id: bytes
    partition: int


# --- 5. APIs: the structures, in the order of the fields ---


class Api(IntEnum):
    PRODUCE = 1
    FETCH = 2
    SUBSCRIBE = 3
    LIST_OFFSETS = 4
    METADATA = 20
    CREATE_TOPIC = 21
    DELETE_TOPIC = 22


class Acks(IntEnum):
    NONE = 0
    LEADER = 1
    ALL = 2


class Durability(IntEnum):
    TOPIC = 0
    MEMORY = 1
    DISK = 2


class OffsetQuery(IntEnum):
    EARLIEST = 0
    LATEST = 1
    TIMESTAMP = 2
    MAX_TIMESTAMP = 3


class ProduceRequest(NamedTuple):
    acks: int
    durability: int
    timeout_ms: int
    partitions: list


class ProducePartition(NamedTuple):
    partition: TopicPartition
    leader_epoch: Optional[int]
    batch_bytes: int


class ProduceReceipt(NamedTuple):
    base_offset: int
    record_count: int
    leader_epoch: int
    durability: int
    replicas_memory: int
    replicas_durable: int
    log_start_offset: int


class FetchRequest(NamedTuple):
    max_wait_ms: int
    min_bytes: int
    max_bytes: int
    partitions: list


class FetchPartition(NamedTuple):
    partition: TopicPartition
    leader_epoch: Optional[int]
    offset: int
    max_bytes: int


class FetchedPartition(NamedTuple):
    high_watermark: int
    log_start_offset: int
    leader_epoch: int
    batch_bytes: int


class SubscribeRequest(NamedTuple):
    credit_bytes: int
    max_push_bytes: int
    partitions: list


class SubscribePartition(NamedTuple):
    partition: TopicPartition
    leader_epoch: Optional[int]
    offset: int


class SubscribedPartition(NamedTuple):
    high_watermark: int
    log_start_offset: int
    leader_epoch: int


class PushHeader(NamedTuple):
    partition: Optional[TopicPartition]
    outcome: dict


class CreditHeader(NamedTuple):
    bytes: int


class ListOffsetsRequest(NamedTuple):
    partitions: list


class ListOffsetsPartition(NamedTuple):
    partition: TopicPartition
    leader_epoch: Optional[int]
    query: int
    timestamp_ms: int


class ListedOffset(NamedTuple):
    offset: int
    timestamp_ms: int
    leader_epoch: int


class MetadataRequest(NamedTuple):
    topics: Optional[list]
    topic_ids: list


class MetadataResponse(NamedTuple):
    cluster_id: str
    controller_id: Optional[int]
    broker_id: int
    metadata_index: int
    brokers: list
    topics: list


class BrokerMetadata(NamedTuple):
    id: int
    host: str
    port: int
    rack: Optional[str]
    fenced: bool


class TopicMetadata(NamedTuple):
    name: str
    id: bytes
    partitions: list
    settings: dict


class PartitionMetadata(NamedTuple):
    leader: Optional[int]
    leader_epoch: int
    partition_epoch: int
    replicas: list
    isr: list


class CreateTopicRequest(NamedTuple):
    name: str
    partitions: Optional[int]
    replication_factor: Optional[int]
    settings: dict
    validate_only: bool
    timeout_ms: int


class CreateTopicResponse(NamedTuple):
    id: bytes
    partitions: int
    replication_factor: int
    settings: dict


class DeleteTopicRequest(NamedTuple):
    name: str
    id: Optional[bytes]
    timeout_ms: int


class DeleteTopicResponse(NamedTuple):
    id: bytes


class ListOf(NamedTuple):
    """The responses of produce, fetch, subscribe and list_offsets: a result for each partition."""

    partitions: list


def metadata_of(value: Any) -> MetadataResponse:
    answer = structure(MetadataResponse, value)
    brokers = [structure(BrokerMetadata, broker) for broker in answer.brokers]
    topics = [_topic_of(structure(TopicMetadata, topic)) for topic in answer.topics]
    return answer._replace(brokers=brokers, topics=topics)


def _topic_of(topic: TopicMetadata) -> TopicMetadata:
    return topic._replace(partitions=[structure(PartitionMetadata, each) for each in topic.partitions])


# --- 6. Errors ---


class Code(IntEnum):
    INTERNAL = 1
    INVALID_REQUEST = 2
    UNSUPPORTED_API = 3
    TOO_LARGE = 4
    TIMEOUT = 5
    NOT_READY = 6
    OVERLOADED = 7
    CANCELLED = 8
    UNKNOWN_TOPIC_OR_PARTITION = 20
    TOPIC_EXISTS = 21
    INVALID_TOPIC_NAME = 22
    INVALID_PARTITIONS = 23
    INVALID_CONFIG = 24
    NOT_LEADER = 40
    FENCED_LEADER_EPOCH = 41
    UNKNOWN_LEADER_EPOCH = 42
    NOT_ENOUGH_REPLICAS = 43
    NOT_ENOUGH_REPLICAS_AFTER_APPEND = 44
    NOT_CONTROLLER = 45
    OFFSET_OUT_OF_RANGE = 60
    INVALID_BATCH = 61
    BATCH_TOO_LARGE = 62
    CORRUPT_DATA = 63
    OFFSET_NOT_AVAILABLE = 64
    DAMAGED_BATCH = 65
    DISK_FULL = 80
    STORAGE_FAILED = 81


def error_name(code: int) -> str:
    return Code(code).name if code in list(Code) else f"error {code}"


# --- 7. Record batches, and 8. compression ---

BATCH_HEAD = struct.Struct(">qiibI")  # as far as the CRC, which covers what follows
BATCH_REST = struct.Struct(">hiqqqhii")
CODEC_BITS = 0b111
BROKER_TIMESTAMPS = 1 << 3
CONTROL = 1 << 5
CODEC_NONE = 0
CODEC_GZIP = 1


class Record(NamedTuple):
    key: Optional[bytes] = None
    value: Optional[bytes] = None
    headers: tuple = ()  # of pairs of a str and bytes or None
    timestamp: int = -1
    offset: Optional[int] = None  # set by the broker


class Batch(NamedTuple):
    records: list
    next_offset: int
    size: int


def _crc32c_table() -> list:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # 1edc6f41, reflected
        table.append(byte)
    return table


CRC32C_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    value = 2 * value if value >= 0 else -2 * value - 1
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _sized(data: Optional[bytes]) -> bytes:
    return varint(-1) if data is None else varint(len(data)) + data


def _encode_record(record: Record, delta: int, base_timestamp: int) -> bytes:
    body = b"\0" + varint(record.timestamp - base_timestamp) + varint(delta)
    body += _sized(record.key) + _sized(record.value) + varint(len(record.headers))
    for key, value in record.headers:
        body += _sized(key.encode()) + _sized(value)
    return varint(len(body)) + body


def encode_batch(records: Sequence[Record], codec: int = CODEC_NONE) -> bytes:
    timestamps = [record.timestamp for record in records]
    body = b"".join(_encode_record(each, at, timestamps[0]) for at, each in enumerate(records))
    count = len(records)
    rest = BATCH_REST.pack(codec, count - 1, timestamps[0], max(timestamps), -1, -1, -1, count)
    rest += _compress(codec, body)
    length = BATCH_HEAD.size - 12 + len(rest)
    return BATCH_HEAD.pack(0, length, -1, 2, crc32c(rest)) + rest


def decode_batches(data: bytes) -> list:
    reader, batches = Reader(data), []
    while reader.left():
        batches.append(_decode_batch(reader))
    return batches


def _decode_batch(reader: Reader) -> Batch:
    base_offset, length, _epoch, magic, crc = BATCH_HEAD.unpack(reader.take(BATCH_HEAD.size))
    rest = reader.take(length - (BATCH_HEAD.size - 12))
    if magic != 2 or crc != crc32c(rest):
        raise Malformed(f"a batch at offset {base_offset} with magic {magic} or a wrong CRC")
    fields = Reader(rest)
    attributes, last_delta, base_timestamp, max_timestamp, *_producer, count = BATCH_REST.unpack(
        fields.take(BATCH_REST.size)
    )
    next_offset, size = base_offset + last_delta + 1, 12 + length
    if attributes & CONTROL:
        return Batch([], next_offset, size)
    body = Reader(_decompress(attributes & CODEC_BITS, fields.take(fields.left())))
    records = [_decode_record(body, base_offset, base_timestamp) for _ in range(count)]
    if body.left():
        raise Malformed(f"{body.left()} bytes behind the last record of a batch")
    if attributes & BROKER_TIMESTAMPS:
        records = [record._replace(timestamp=max_timestamp) for record in records]
    return Batch(records, next_offset, size)


def _decode_record(batch: Reader, base_offset: int, base_timestamp: int) -> Record:
    reader = Reader(batch.take(batch.varint()))
    reader.take(1)  # attributes
    timestamp = base_timestamp + reader.varint(max_bytes=10)
    offset = base_offset + reader.varint()
    key, value = reader.sized(), reader.sized()
    headers = tuple((reader.take(reader.varint()).decode(), reader.sized()) for _ in range(reader.varint()))
    if reader.left():
        raise Malformed(f"{reader.left()} bytes behind the headers of the record at {offset}")
    return Record(key, value, headers, timestamp, offset)


def _compress(codec: int, data: bytes) -> bytes:
    if codec == CODEC_NONE:
        return data
    if codec == CODEC_GZIP:
        return zlib.compress(data, wbits=31)
    raise NotImplementedError(f"codec {codec}")


def _decompress(codec: int, data: bytes) -> bytes:
    if codec == CODEC_NONE:
        return data
    if codec != CODEC_GZIP:
        raise NotImplementedError(f"codec {codec}")
    output = b""
    while data:  # a member at a time
        member = zlib.decompressobj(wbits=31)
        output += member.decompress(data, MAX_DECOMPRESSED + 1 - len(output))
        if len(output) > MAX_DECOMPRESSED or not member.eof:
            raise Malformed("gzip that is too long or cut off")
        data = member.unused_data
    return output


# --- 9. Keys and partitions ---


def murmur2(data: bytes) -> int:
    """32-bit MurmurHash2 with the seed that Kafka uses, unsigned."""
    factor, mask = 0x5BD1E995, 0xFFFFFFFF
    value = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        value = value * factor & mask ^ word
    if whole < len(data):
        value = (value ^ int.from_bytes(data[whole:], "little")) * factor & mask
    value = (value ^ value >> 13) * factor & mask
    return value ^ value >> 15


def partition_of(key: bytes, partitions: int) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % partitions


# --- The client ---


class Fetched(NamedTuple):
    high_watermark: int
    log_start_offset: int
    records: list
    next_offset: int


class Push(NamedTuple):
    partition: TopicPartition
    high_watermark: int
    records: list
    size: int  # what it spent of the credit


def _records_from(payload: bytes, offset: int) -> tuple:
    """The records from an offset on, without those of the first batch below it; and the offset to continue at."""
    records, next_offset = [], offset
    for batch in decode_batches(payload):
        records += [record for record in batch.records if record.offset >= offset]
        next_offset = batch.next_offset
    return records, next_offset


class Client:
    """One connection. Requests can be sent ahead of their answers; one thread at a time may use it."""

    def __init__(self, host: str, port: int, timeout: float = 30):
        self.peer = (host, port)
        self._timeout = timeout
        self._socket = socket.create_connection((host, port), timeout)
        self._received = bytearray()
        self._correlation = 0
        self._waiting = deque()  # correlations of requests, in the order in which they are answered
        self._answers = {}
        self._pushes = {}
        self._socket.sendall(preface())
        self.version = negotiate(self._take(PREFACE.size, timeout))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    # Frames

    def send(self, api: int, request: Any, payload: bytes = b"", answered: bool = True) -> int:
        """Sends a request and returns its correlation, without waiting for the answer."""
        self._correlation = (self._correlation + 1) & 0xFFFFFFFF
        if answered:
            self._waiting.append((self._correlation, api))
        self._send_frame(Frame(Kind.REQUEST, api, self._correlation, request, payload))
        return self._correlation

    def send_again(self, api: int, correlation: int, request: Any) -> None:
        """Sends a request under a number that has been used before."""
        self._waiting.append((correlation, api))
        self._send_frame(Frame(Kind.REQUEST, api, correlation, request))

    def answer(self, correlation: int) -> tuple:
        """The response structure, not yet decoded, and the payload of the answer to a request."""
        while correlation not in self._answers:
            self._dispatch(self._receive(self._timeout))
        frame = self._answers.pop(correlation)
        return result(frame.header), frame.payload

    def call(self, api: int, request: Any, payload: bytes = b"") -> tuple:
        return self.answer(self.send(api, request, payload))

    def cancel(self, api: int, correlation: int) -> None:
        self._send_frame(Frame(Kind.CANCEL, api, correlation, None))

    def _send_frame(self, frame: Frame) -> None:
        self._socket.settimeout(self._timeout)
        self._socket.sendall(frame.encode())

    def _receive(self, timeout: float) -> Frame:
        start = self._peek(4, timeout)
        return Frame.decode(self._take(frame_length(start), timeout))

    def _peek(self, size: int, timeout: float) -> bytes:
        """What is received is kept, so that a timeout loses nothing."""
        deadline = time.monotonic() + timeout
        while len(self._received) < size:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise ConnectionError("the broker closed the connection")
            self._received += chunk
        return bytes(self._received[:size])

    def _take(self, size: int, timeout: float) -> bytes:
        data = self._peek(size, timeout)
        del self._received[:size]
        return data

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind == Kind.PUSH:
            if frame.correlation not in self._pushes:
                raise Malformed(f"a push for {frame.correlation}, which is not a subscription")
            self._pushes[frame.correlation].append(frame)
            return
        expected = self._waiting.popleft() if self._waiting else None
        if frame.kind != Kind.RESPONSE or (frame.correlation, frame.api) != expected:
            raise Malformed(f"{frame} where the answer to {expected} is due")
        self._answers[frame.correlation] = frame

    # Topics

    def metadata(self, names: Optional[list] = None, ids: Sequence[bytes] = ()) -> MetadataResponse:
        """What there is: topics by name and by id, all for None."""
        answer, _ = self.call(Api.METADATA, MetadataRequest(names, list(ids)))
        return metadata_of(answer)

    def create_topic(
        self,
        name: str,
        partitions: Optional[int] = None,
        replication_factor: Optional[int] = None,
        settings: Optional[dict] = None,
        validate_only: bool = False,
        timeout_ms: int = 30_000,
    ) -> CreateTopicResponse:
        request = CreateTopicRequest(
            name, partitions, replication_factor, settings or {}, validate_only, timeout_ms
        )
        return structure(CreateTopicResponse, self.call(Api.CREATE_TOPIC, request)[0])

    def delete_topic(self, name: str, topic_id: Optional[bytes] = None, timeout_ms: int = 30_000) -> bytes:
        answer, _ = self.call(Api.DELETE_TOPIC, DeleteTopicRequest(name, topic_id, timeout_ms))
        return structure(DeleteTopicResponse, answer).id

    # Records

    def produce(
        self,
        topic_id: bytes,
        partition: int,
        records: Sequence[Record],
        codec: int = CODEC_NONE,
        acks: int = Acks.ALL,
        timeout_ms: int = 30_000,
    ) -> Optional[ProduceReceipt]:
        """Appends records as one batch. There is no receipt for `Acks.NONE`."""
        batch = encode_batch(records, codec)
        target = ProducePartition(TopicPartition(topic_id, partition), None, len(batch))
        request = ProduceRequest(acks, Durability.TOPIC, timeout_ms, [target])
        sent = self.send(Api.PRODUCE, request, batch, answered=acks != Acks.NONE)
        if acks == Acks.NONE:
            return None
        return structure(ProduceReceipt, self._only(self.answer(sent)[0]))

    def fetch(
        self, topic_id: bytes, partition: int, offset: int, max_wait_ms: int = 0, max_bytes: int = 1 << 20
    ) -> Fetched:
        return self.fetched(self.send_fetch(topic_id, partition, offset, max_wait_ms, max_bytes), offset)

    def send_fetch(
        self, topic_id: bytes, partition: int, offset: int, max_wait_ms: int = 0, max_bytes: int = 1 << 20
    ) -> int:
        target = FetchPartition(TopicPartition(topic_id, partition), None, offset, max_bytes)
        return self.send(Api.FETCH, FetchRequest(max_wait_ms, 1, max_bytes, [target]))

    def fetched(self, correlation: int, offset: int) -> Fetched:
        answer, payload = self.answer(correlation)
        partition = structure(FetchedPartition, self._only(answer))
        if partition.batch_bytes != len(payload):
            raise Malformed(f"{partition.batch_bytes} bytes announced, {len(payload)} came")
        records, next_offset = _records_from(payload, offset)
        return Fetched(partition.high_watermark, partition.log_start_offset, records, next_offset)

    def list_offsets(
        self, topic_id: bytes, partition: int, query: int, timestamp_ms: int = 0
    ) -> ListedOffset:
        target = ListOffsetsPartition(TopicPartition(topic_id, partition), None, query, timestamp_ms)
        answer, _ = self.call(Api.LIST_OFFSETS, ListOffsetsRequest([target]))
        return structure(ListedOffset, self._only(answer))

    @staticmethod
    def _only(answer: Any) -> Any:
        """The result of the only partition of a request."""
        results = structure(ListOf, answer).partitions
        if len(results) != 1:
            raise Malformed(f"{len(results)} results for one partition")
        return result(results[0])

    def subscribe(
        self, offsets: dict, credit_bytes: int = 1 << 20, max_push_bytes: int = 1 << 18
    ) -> "Subscription":
        """Subscribes to partitions, each from its offset."""
        targets = [SubscribePartition(each, None, offset) for each, offset in offsets.items()]
        request = SubscribeRequest(credit_bytes, max_push_bytes, targets)
        correlation = self.send(Api.SUBSCRIBE, request)
        queue = self._pushes[correlation] = deque()
        try:
            answer, _ = self.answer(correlation)
        except Failed:
            del self._pushes[correlation]
            raise
        results = structure(ListOf, answer).partitions
        return Subscription(self, correlation, queue, dict(offsets), dict(zip(offsets, results)))


class Subscription:
    """Batches that are sent as they become readable."""

    def __init__(self, client: Client, correlation: int, queue: deque, offsets: dict, results: dict):
        self._client = client
        self.correlation = correlation
        self._queue = queue
        self._next_offsets = offsets
        self._results = results

    def started(self, partition: TopicPartition) -> SubscribedPartition:
        """Where a partition stood at the start; raises why it is not part of the subscription."""
        return structure(SubscribedPartition, result(self._results[partition]))

    def next(self, timeout: float = 30) -> Push:
        """The next push; raises `TimeoutError` when there is none in time, `Failed` when it says that it is over."""
        header, payload = self._next_push(timeout)
        pushed = structure(FetchedPartition, result(header.outcome))
        partition = structure(TopicPartition, header.partition)
        if pushed.batch_bytes != len(payload):
            raise Malformed(f"{pushed.batch_bytes} bytes announced, {len(payload)} came")
        records, next_offset = _records_from(payload, self._next_offsets[partition])
        self._next_offsets[partition] = next_offset
        return Push(partition, pushed.high_watermark, records, len(payload))

    def credit(self, size: int) -> None:
        """Makes room for more pushes."""
        header = CreditHeader(size)
        self._client._send_frame(Frame(Kind.CREDIT, Api.SUBSCRIBE, self.correlation, header))

    def cancel(self) -> int:
        """Ends the subscription, drops what was under way, and returns the code that the last push has."""
        self._client.cancel(Api.SUBSCRIBE, self.correlation)
        return self.ended()

    def ended(self) -> int:
        """Waits for the last push, drops those before it, and returns its code."""
        while True:
            header, _dropped = self._next_push(30)
            if header.partition is None:
                return structure(Failure, header.outcome["Err"]).code

    def _next_push(self, timeout: float) -> tuple:
        """The header and the payload of a push; forgets the subscription with the last."""
        while not self._queue:
            if self.correlation not in self._client._pushes:
                raise Malformed("the subscription is over")
            self._client._dispatch(self._client._receive(timeout))
        frame = self._queue.popleft()
        header = structure(PushHeader, frame.header)
        if header.partition is None:
            if "Err" not in header.outcome:
                raise Malformed("a push of no partition that is not a failure")
            del self._client._pushes[self.correlation]
        return header, frame.payload
