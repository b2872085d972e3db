"""Settings: the only place that reads the environment. Each is ``EMBEDMILL_<NAME>``."""

import functools
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, FilePath, RedisDsn, TypeAdapter, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from contract.errors import UserError
from contract.store import LocationField, location


class Settings(BaseSettings):
    """What every command shares. A command's own flags come on top of these."""

    model_config = SettingsConfigDict(env_prefix="EMBEDMILL_", frozen=True, use_attribute_docstrings=True)

    redis_url: str = "redis://localhost:6379/0"
    """The Redis that carries the batches: ``redis://`` or ``rediss://``, and after the database's number nothing."""

    redis_ca: FilePath | None = None
    """File of the authority that signed Redis's certificate, for ``rediss://``. Unset: the system's authorities."""

    engines: Path = Path("engines")
    """Folder that holds one folder per engine."""

    output: LocationField = location("output")
    """Folder that holds one folder per job: a path, or ``s3://bucket/prefix`` or ``gs://bucket/prefix``."""

    engine: str | None = None
    """Name of the engine to use. Unset: the one built last."""

    runtime: Literal["auto", "tensorrt", "onnxruntime"] = "auto"
    """What a worker computes with. ``auto``: TensorRT if the engine has a plan and the machine a GPU, tensorrt and
    pycuda; else ONNX Runtime on the CPU."""

    token_budget: int = Field(default=512, ge=1)
    """Most tokens, padding included, that one thread of the ONNX Runtime engine computes at once; a longer row is
    computed alone. 512 was the fastest of 512, 1,024 and 2,048 in three rounds on two cores."""

    threads: int | None = Field(default=None, ge=1)
    """Cores that one worker child computes on. Unset: the machine's, divided among the children."""

    tokenizers: int | None = Field(default=None, ge=1)
    """Processes that the producer tokenizes in. Unset: one for every other core of the machine, fewer for few batches.
    1 is the producer itself."""

    attempts: int = Field(default=3, ge=1)
    """How often a batch is tried as a whole. After that, the row that it fails on is looked for."""

    redis_patience: float = Field(default=30.0, ge=0)
    """Seconds that the producer and the verifier wait for a Redis that does not answer. A worker waits for ever."""

    outstanding_bytes: int = Field(default=256 * 2**20, ge=1)
    """Most bytes of batches that are in Redis at once; the producer waits above that."""

    batch_bytes: int = Field(default=256 * 2**20, ge=1)
    """Most bytes of one batch that a worker takes."""

    visibility_timeout: int = Field(default=600, ge=1)
    """Seconds after which a batch whose worker vanished, machine and all, goes to another: more than the longest batch
    takes. One that takes longer is computed twice, which costs time and nothing else. It is the way without a
    producer; a producer publishes a vanished worker's batch after ``heartbeat_timeout``."""

    heartbeat_timeout: float = Field(default=30.0, ge=3)
    """Seconds for which a worker may be silent, which beats every second or two, before the producer takes it for dead
    and publishes its batch again."""

    stop_seconds: float = Field(default=8.0, ge=1)
    """Seconds within which SIGTERM or Ctrl-C ends a worker, whatever it waits for. Its batch may finish in all but the
    last three of them."""

    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port at which a worker tells Prometheus how it is doing. Unset: it does not."""

    log: Literal["text", "json"] = "text"
    """How a worker writes its log: lines for people, or one JSON object a line."""

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        TypeAdapter(RedisDsn).validate_python(url)
        # A query (?ssl_cert_reqs=none) would overrule ``tls_options``, in redis-py and in Kombu, and a semicolon is a
        # second server to Kombu. A bare slash or # in a password ends the address early, and messages would show it.
        if not re.fullmatch(r"rediss?://([^/?#;@\[\]\s]*@)?[^/?#;@\s]*(/\d*)?", url):
            raise PydanticCustomError(
                "redis_url",
                "expected rediss://user:password@host:port/number and nothing after it, the password percent-encoded",
            )
        return url


@functools.cache
def settings() -> Settings:
    """The process's settings, read from the environment once.

    Raises:
        UserError: a variable's value is not of its kind; the message names the variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"EMBEDMILL_{str(first['loc'][0]).upper()}"
        # A URL's password is not for a terminal or a log.
        value = re.sub("//.*@", "//…@", str(first["input"]), flags=re.DOTALL)
        raise UserError(
            f"{variable} is {value!r}", first["msg"].lower(), f"set {variable} right, or unset it"
        ) from None
