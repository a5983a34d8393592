from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("protocol", "version", "rank", "nodes", "addresses", "coordinator", "starts_frozen", "host")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    STARTS_FROZEN_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    rank: int
    nodes: int
    addresses: _containers.RepeatedScalarFieldContainer[bytes]
    coordinator: Endpoint
    starts_frozen: bool
    host: str
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., rank: _Optional[int] = ..., nodes: _Optional[int] = ..., addresses: _Optional[_Iterable[bytes]] = ..., coordinator: _Optional[_Union[Endpoint, _Mapping]] = ..., starts_frozen: _Optional[bool] = ..., host: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("session", "silence_s")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SILENCE_S_FIELD_NUMBER: _ClassVar[int]
    session: str
    silence_s: float
    def __init__(self, session: _Optional[str] = ..., silence_s: _Optional[float] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("address", "port")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    port: int
    def __init__(self, address: _Optional[bytes] = ..., port: _Optional[int] = ...) -> None: ...

class FromNode(_message.Message):
    __slots__ = ("hello", "heartbeat", "report", "withdraw", "ready", "parked", "finished", "failed")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    report: Report
    withdraw: int
    ready: Ready
    parked: Parked
    finished: int
    failed: str
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., withdraw: _Optional[int] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., parked: _Optional[_Union[Parked, _Mapping]] = ..., finished: _Optional[int] = ..., failed: _Optional[str] = ...) -> None: ...

class ToNode(_message.Message):
    __slots__ = ("heartbeat", "begin", "park", "freeze", "answer", "end")
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    PARK_FIELD_NUMBER: _ClassVar[int]
    FREEZE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    heartbeat: Heartbeat
    begin: Begin
    park: Park
    freeze: Freeze
    answer: Answer
    end: End
    def __init__(self, heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., park: _Optional[_Union[Park, _Mapping]] = ..., freeze: _Optional[_Union[Freeze, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("session", "rank")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    session: str
    rank: int
    def __init__(self, session: _Optional[str] = ..., rank: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Report(_message.Message):
    __slots__ = ("number", "deadline_ns", "background_ns", "answerable", "changed", "gone")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_NS_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_NS_FIELD_NUMBER: _ClassVar[int]
    ANSWERABLE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    number: int
    deadline_ns: int
    background_ns: int
    answerable: bool
    changed: _containers.RepeatedCompositeFieldContainer[Connection]
    gone: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, number: _Optional[int] = ..., deadline_ns: _Optional[int] = ..., background_ns: _Optional[int] = ..., answerable: _Optional[bool] = ..., changed: _Optional[_Iterable[_Union[Connection, _Mapping]]] = ..., gone: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Connection(_message.Message):
    __slots__ = ("key", "state", "unsent_bytes", "unread_bytes", "sent_bytes", "received_bytes", "unacknowledged_bytes")
    KEY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    UNSENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNREAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNACKNOWLEDGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    state: int
    unsent_bytes: int
    unread_bytes: int
    sent_bytes: int
    received_bytes: int
    unacknowledged_bytes: int
    def __init__(self, key: _Optional[bytes] = ..., state: _Optional[int] = ..., unsent_bytes: _Optional[int] = ..., unread_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ..., unacknowledged_bytes: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Parked(_message.Message):
    __slots__ = ("now_ns",)
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    now_ns: int
    def __init__(self, now_ns: _Optional[int] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("own", "peers", "coordinators", "on_real_time")
    OWN_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    COORDINATORS_FIELD_NUMBER: _ClassVar[int]
    ON_REAL_TIME_FIELD_NUMBER: _ClassVar[int]
    own: _containers.RepeatedScalarFieldContainer[bytes]
    peers: _containers.RepeatedScalarFieldContainer[bytes]
    coordinators: _containers.RepeatedCompositeFieldContainer[Endpoint]
    on_real_time: bool
    def __init__(self, own: _Optional[_Iterable[bytes]] = ..., peers: _Optional[_Iterable[bytes]] = ..., coordinators: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., on_real_time: _Optional[bool] = ...) -> None: ...

class Park(_message.Message):
    __slots__ = ("epoch_ns",)
    EPOCH_NS_FIELD_NUMBER: _ClassVar[int]
    epoch_ns: int
    def __init__(self, epoch_ns: _Optional[int] = ...) -> None: ...

class Freeze(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Answer(_message.Message):
    __slots__ = ("number", "instant_ns", "search", "ask_world")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INSTANT_NS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    ASK_WORLD_FIELD_NUMBER: _ClassVar[int]
    number: int
    instant_ns: int
    search: bool
    ask_world: bool
    def __init__(self, number: _Optional[int] = ..., instant_ns: _Optional[int] = ..., search: _Optional[bool] = ..., ask_world: _Optional[bool] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("good", "reason")
    GOOD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    good: bool
    reason: str
    def __init__(self, good: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...
