"""The wire formats of OpenAI's embeddings and of Cohere's and Jina's reranking. The rules: openai_api/wire.py."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.routes.wire import AtLeastOne, Count

TokenId = Count
#: A text, a list of texts, a list of token ids, or a list of lists of token ids.
InputField = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]

MAX_INPUTS = 2048  # of one request, as at OpenAI: texts, lists of token ids, or documents


# ---- requests ------------------------------------------------------------------------------------------------------


class EmbeddingsRequest(Struct, kw_only=True):
    unused: ClassVar[frozenset[str]] = frozenset(["user", "safety_identifier", "extra_headers", "timeout"])
    input: InputField
    model: str | None = None
    dimensions: AtLeastOne | None = None
    encoding_format: Literal["float", "base64"] | None = None
    #: Cohere, Voyage, NIM: "query" or "search_query", "document", "passage" or "search_document".
    input_type: str | None = None


class Document(Struct, kw_only=True):
    text: str


class RerankRequest(Struct, kw_only=True):
    unused: ClassVar[frozenset[str]] = frozenset(["user", "priority", "max_tokens_per_doc", "max_chunks_per_doc"])
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    model: str | None = None
    top_n: AtLeastOne | None = None
    top_k: AtLeastOne | None = None  # Voyage's name of it
    return_documents: bool | None = None


# ---- replies -------------------------------------------------------------------------------------------------------


class EmbeddingUsage(Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class Embedding(Struct, kw_only=True):
    """`embedding`: numbers, or the base64 of them as float32, little-endian."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingList(Struct, kw_only=True):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class Ranked(Struct, kw_only=True):
    """`index`: of the document in the request. `document`: only with `return_documents`."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class Ranking(Struct, kw_only=True):
    """The documents, the most relevant one first: in `results` for Cohere and Jina, in `data` for Voyage."""

    id: str
    model: str
    results: list[Ranked]
    data: list[Ranked]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"
