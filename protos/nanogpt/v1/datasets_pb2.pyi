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
    __slots__ = ("name", "tokenizer", "train_tokens", "val_tokens", "vocab_size", "characters", "encoding", "source_sha256", "create_time", "report", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    TRAIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    tokenizer: Tokenizer
    train_tokens: int
    val_tokens: int
    vocab_size: int
    characters: int
    encoding: str
    source_sha256: str
    create_time: _timestamp_pb2.Timestamp
    report: DatasetReport
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., tokenizer: _Optional[_Union[Tokenizer, str]] = ..., train_tokens: _Optional[int] = ..., val_tokens: _Optional[int] = ..., vocab_size: _Optional[int] = ..., characters: _Optional[int] = ..., encoding: _Optional[str] = ..., source_sha256: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., report: _Optional[_Union[DatasetReport, _Mapping]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class DatasetReport(_message.Message):
    __slots__ = ("documents", "empty_documents", "undecodable_characters", "used_tokens", "unknown_val_tokens", "train_val_overlap", "warnings")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    EMPTY_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    UNDECODABLE_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_VAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_VAL_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    documents: int
    empty_documents: int
    undecodable_characters: int
    used_tokens: int
    unknown_val_tokens: int
    train_val_overlap: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, documents: _Optional[int] = ..., empty_documents: _Optional[int] = ..., undecodable_characters: _Optional[int] = ..., used_tokens: _Optional[int] = ..., unknown_val_tokens: _Optional[int] = ..., train_val_overlap: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class CreateDatasetRequest(_message.Message):
    __slots__ = ("spec", "text")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    spec: DatasetSpec
    text: bytes
    def __init__(self, spec: _Optional[_Union[DatasetSpec, _Mapping]] = ..., text: _Optional[bytes] = ...) -> None: ...

class DatasetSpec(_message.Message):
    __slots__ = ("name", "tokenizer", "val_ratio", "encoding", "shipped", "format", "text_field", "max_documents")
    class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FORMAT_UNSPECIFIED: _ClassVar[DatasetSpec.Format]
        FORMAT_TEXT: _ClassVar[DatasetSpec.Format]
        FORMAT_TAR: _ClassVar[DatasetSpec.Format]
        FORMAT_JSONL: _ClassVar[DatasetSpec.Format]
        FORMAT_PARQUET: _ClassVar[DatasetSpec.Format]
    FORMAT_UNSPECIFIED: DatasetSpec.Format
    FORMAT_TEXT: DatasetSpec.Format
    FORMAT_TAR: DatasetSpec.Format
    FORMAT_JSONL: DatasetSpec.Format
    FORMAT_PARQUET: DatasetSpec.Format
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    VAL_RATIO_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SHIPPED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_FIELD_NUMBER: _ClassVar[int]
    MAX_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    tokenizer: Tokenizer
    val_ratio: float
    encoding: str
    shipped: str
    format: DatasetSpec.Format
    text_field: str
    max_documents: int
    def __init__(self, name: _Optional[str] = ..., tokenizer: _Optional[_Union[Tokenizer, str]] = ..., val_ratio: _Optional[float] = ..., encoding: _Optional[str] = ..., shipped: _Optional[str] = ..., format: _Optional[_Union[DatasetSpec.Format, str]] = ..., text_field: _Optional[str] = ..., max_documents: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("datasets", "shipped", "in_progress")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    SHIPPED_FIELD_NUMBER: _ClassVar[int]
    IN_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    shipped: _containers.RepeatedCompositeFieldContainer[ShippedDataset]
    in_progress: _containers.RepeatedCompositeFieldContainer[DatasetInProgress]
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., shipped: _Optional[_Iterable[_Union[ShippedDataset, _Mapping]]] = ..., in_progress: _Optional[_Iterable[_Union[DatasetInProgress, _Mapping]]] = ...) -> None: ...

class DatasetInProgress(_message.Message):
    __slots__ = ("name", "phase", "bytes_done", "bytes_total")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[DatasetInProgress.Phase]
        PHASE_UPLOADING: _ClassVar[DatasetInProgress.Phase]
        PHASE_READING: _ClassVar[DatasetInProgress.Phase]
        PHASE_TOKENIZING: _ClassVar[DatasetInProgress.Phase]
        PHASE_CHECKING: _ClassVar[DatasetInProgress.Phase]
    PHASE_UNSPECIFIED: DatasetInProgress.Phase
    PHASE_UPLOADING: DatasetInProgress.Phase
    PHASE_READING: DatasetInProgress.Phase
    PHASE_TOKENIZING: DatasetInProgress.Phase
    PHASE_CHECKING: DatasetInProgress.Phase
    NAME_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    phase: DatasetInProgress.Phase
    bytes_done: int
    bytes_total: int
    def __init__(self, name: _Optional[str] = ..., phase: _Optional[_Union[DatasetInProgress.Phase, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

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
