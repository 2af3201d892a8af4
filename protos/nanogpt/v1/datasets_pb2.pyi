import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tokenizer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKENIZER_UNSPECIFIED: _ClassVar[Tokenizer]
    TOKENIZER_GPT2: _ClassVar[Tokenizer]
    TOKENIZER_CHAR: _ClassVar[Tokenizer]
TOKENIZER_UNSPECIFIED: Tokenizer
TOKENIZER_GPT2: Tokenizer
TOKENIZER_CHAR: Tokenizer

class Dataset(_message.Message):
    __slots__ = ("name", "tokenizer", "train_tokens", "val_tokens", "vocab_size", "characters", "encoding", "source_sha256", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    TRAIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    tokenizer: Tokenizer
    train_tokens: int
    val_tokens: int
    vocab_size: int
    characters: int
    encoding: str
    source_sha256: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., tokenizer: _Optional[_Union[Tokenizer, str]] = ..., train_tokens: _Optional[int] = ..., val_tokens: _Optional[int] = ..., vocab_size: _Optional[int] = ..., characters: _Optional[int] = ..., encoding: _Optional[str] = ..., source_sha256: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateDatasetRequest(_message.Message):
    __slots__ = ("spec", "text")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    spec: DatasetSpec
    text: bytes
    def __init__(self, spec: _Optional[_Union[DatasetSpec, _Mapping]] = ..., text: _Optional[bytes] = ...) -> None: ...

class DatasetSpec(_message.Message):
    __slots__ = ("name", "tokenizer", "val_ratio", "encoding", "shipped")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    VAL_RATIO_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SHIPPED_FIELD_NUMBER: _ClassVar[int]
    name: str
    tokenizer: Tokenizer
    val_ratio: float
    encoding: str
    shipped: str
    def __init__(self, name: _Optional[str] = ..., tokenizer: _Optional[_Union[Tokenizer, str]] = ..., val_ratio: _Optional[float] = ..., encoding: _Optional[str] = ..., shipped: _Optional[str] = ...) -> None: ...

class CreateDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class GetDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets", "shipped")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    SHIPPED_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    shipped: _containers.RepeatedCompositeFieldContainer[ShippedDataset]
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., shipped: _Optional[_Iterable[_Union[ShippedDataset, _Mapping]]] = ...) -> None: ...

class ShippedDataset(_message.Message):
    __slots__ = ("name", "description", "needs_download")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    NEEDS_DOWNLOAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    needs_download: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., needs_download: _Optional[bool] = ...) -> None: ...

class DeleteDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteDatasetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
