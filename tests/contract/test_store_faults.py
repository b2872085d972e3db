"""An object store that is slow, loses answers, refuses or is set up wrongly; and what the user is told of it."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import tenacity

from bench.buckets import BUCKET, credentials, s3_server
from bench.faulty_store import Answer, Fault, Proxy, delay, error, faulty, lose_answer, lose_request
from contract.errors import UserError
from contract.store import StoreError, StoreRefuses, client
from contract.store.bucket import BucketPath
from embedmill.processes import free_port

MB = 2**20
LATE = error(412, "PreconditionFailed")
CONFLICT = error(409, "ConditionalRequestConflict")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Variables for a server that nobody runs; two attempts at each request, 0.1 s apart."""
    for name, value in credentials(f"http://127.0.0.1:{free_port()}").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_REGION", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client.patiently, "stop", tenacity.stop_after_attempt(2))
    monkeypatch.setattr(client.patiently, "wait", tenacity.wait_fixed(0.1))
    client.store_of.cache_clear()
    yield
    client.store_of.cache_clear()


@pytest.fixture
def proxy(server: str, environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with faulty(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def file(proxy: Proxy, request: pytest.FixtureRequest) -> BucketPath:
    """An object that is not there yet, of this test's own."""
    return BucketPath(f"s3://{BUCKET}/{abs(hash(request.node.name))}/file")


def writes(content: bytes) -> Callable[[IO[bytes]], None]:
    def write(target: IO[bytes]) -> None:
        target.write(content)

    return write


def test_an_object_whose_answer_was_lost_is_this_calls_own(file: BucketPath, proxy: Proxy) -> None:
    proxy.faults = [("PUT", lose_answer)]
    assert file.create(writes(b"mine"), file.parent)
    assert proxy.methods()[:2] == ["PUT", "PUT"]
    assert all(request.headers["if-none-match"] == "*" for request in proxy.requests[:2])
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize("other", [b"ours", b"theirs"])
def test_an_object_of_other_bytes_is_anothers(other: bytes, file: BucketPath, proxy: Proxy) -> None:
    def another_is_faster(request: object, forward: object) -> None:
        file.put(other)

    proxy.faults = [("PUT", another_is_faster)]
    assert not file.create(writes(b"mine"), file.parent)
    assert file.read_bytes() == other


def test_a_write_that_collided_is_tried_again_until_an_object_is_there(file: BucketPath, proxy: Proxy) -> None:
    proxy.faults = [("PUT", CONFLICT), ("PUT", LATE)]
    assert file.create(writes(b"mine"), file.parent)
    assert proxy.methods() == ["PUT", "HEAD", "PUT", "HEAD", "PUT"]
    assert file.read_bytes() == b"mine"


def test_a_write_that_collides_again_and_again_is_an_error_that_may_pass(file: BucketPath, proxy: Proxy) -> None:
    proxy.faults = [("PUT", CONFLICT)] * 5
    with pytest.raises(StoreError, match="409 Conflict: ConditionalRequestConflict: words") as told:
        file.create(writes(b"mine"), file.parent)
    assert not isinstance(told.value, StoreRefuses)
    assert not file.exists()


def test_a_missing_object_is_removed_also_after_a_lost_answer(file: BucketPath, proxy: Proxy) -> None:
    file.unlink()
    file.put(b"1")
    proxy.faults = [("POST", lose_answer)]
    file.unlink()
    assert not file.exists()
    removals = [request for request in proxy.requests if request.method == "POST"]
    assert [request.path for request in removals] == [f"/{BUCKET}?delete"] * 3


def test_an_object_that_may_not_be_removed_is_an_error(file: BucketPath, proxy: Proxy) -> None:
    denied = f"<Error><Key>{file.parent.name}/file</Key><Code>AccessDenied</Code><Message>words</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?><DeleteResult>{denied}</DeleteResult>'.encode()
    proxy.faults = [("POST", lambda request, forward: Answer(200, body))] * 2
    with pytest.raises(StoreError, match="AccessDenied"):
        file.unlink()


def test_a_large_object_is_read_in_slices_and_a_lost_one_alone_is_read_again(file: BucketPath, proxy: Proxy) -> None:
    content = np.random.default_rng(0).bytes(20 * MB)
    file.put(content)
    proxy.requests.clear()
    proxy.faults = [("GET", lose_request)]
    assert file.read_bytes() == content
    ranges = [request.headers["range"].removeprefix("bytes=").split("-") for request in proxy.requests[1:]]
    sizes = [int(last) - int(first) + 1 for first, last in ranges]
    assert max(sizes) == 8 * MB
    assert len(sizes) == 4
    assert sum(sizes) - sizes[0] == len(content)


@pytest.mark.parametrize(
    ("size", "seconds"), [(0, 30), (1, 60), (7_500_000, 60), (7_500_001, 120), (20_000_000, 120), (100_000_000, 480)]
)
def test_a_request_has_time_for_its_bytes(size: int, seconds: float) -> None:
    assert client.timeout(size) == seconds


def test_a_large_write_may_take_as_long_as_a_small_request_may_not(
    file: BucketPath, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "_REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(client, "_SLOWEST", MB)
    proxy.faults = [("PUT", delay(1.5))]
    file.put(bytes(4 * MB))
    assert (proxy.methods(), file.size()) == (["PUT"], 4 * MB)
    proxy.faults = [("HEAD", delay(1.5))] * 2
    began = time.monotonic()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(StoreError, match=rf"does not answer for {file} .*error sending request: Timeout"),
    ):
        file.exists()
    assert 1 < time.monotonic() - began < 1.5
    assert [record.message.partition(" (")[0] for record in caplog.records] == ["the object store does not answer"]
    assert caplog.records[0].message.endswith("; trying again")


TOLD: dict[str, tuple[Fault, str, str]] = {
    "no right": (
        error(403, "AccessDenied"),
        r"the object store refuses s3://\S+ \(.*403 Forbidden: AccessDenied: words\)",
        r"set the AWS_\* variables, .* to credentials that may list, read and write there",
    ),
    "wrong key": (
        error(403, "SignatureDoesNotMatch"),
        r"the object store refuses s3://\S+ \(.*SignatureDoesNotMatch: words\)",
        r"set the AWS_\* variables",
    ),
    "expired": (
        error(400, "ExpiredToken"),
        r"the object store refuses s3://\S+ \(.*400 Bad Request: ExpiredToken: words\)",
        r"set AWS_REGION .*, and set the AWS_\* variables",
    ),
    "a redirect": (
        error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-central-1"}),
        r"s3://\S+ is in another region \(.*Received redirect without LOCATION.*\)",
        "set AWS_REGION to the bucket's region",
    ),
    "a redirect with an address": (
        error(307, "TemporaryRedirect", headers={"Location": "https://nowhere.invalid/"}),
        r"s3://\S+ is in another region \(.*307 Temporary Redirect:?\)",
        "set AWS_REGION to the bucket's region",
    ),
    "a region that the server names": (
        error(400, "AuthorizationHeaderMalformed", more="<Region>eu-central-1</Region>"),
        r"s3://\S+ is in another region \(.*AuthorizationHeaderMalformed: words\)",
        "set AWS_REGION to eu-central-1",
    ),
    "no conditional PUT": (
        error(501, "NotImplemented"),
        r"the object store refuses s3://\S+ \(.*501 Not Implemented: NotImplemented: words\)",
        r"use a store that knows PUT with the condition If-None-Match: \*",
    ),
    "no bucket": (
        error(404, "NoSuchBucket"),
        r"there is no bucket for s3://\S+",
        "make the bucket, or choose another",
    ),
}


@pytest.mark.parametrize("what", TOLD)
def test_a_refusal_says_what_was_found_and_what_to_do_at_once(what: str, file: BucketPath, proxy: Proxy) -> None:
    fault, found, hint = TOLD[what]
    proxy.faults = [("PUT", fault)]
    with pytest.raises(StoreRefuses, match=rf"^{found}; {hint}") as told:
        file.create(writes(b"mine"), file.parent)
    assert proxy.methods() == ["PUT"]
    assert not re.search("<|https?:|Debug|[nµm]s ", told.value.message)


PASSES = {
    "overloaded": (error(503, "SlowDown"), "503 Service Unavailable: SlowDown: words"),
    "failed": (error(500, "InternalError"), "500 Internal Server Error: InternalError: words"),
    "too many": (error(429, "TooManyRequests"), "429 Too Many Requests"),
    "an upload that was too slow": (error(400, "RequestTimeout"), "400 Bad Request: RequestTimeout: words"),
    "a message that speaks of credentials": (error(500, "CredentialServiceDown"), "500 Internal Server Error"),
    "a broken connection": (lose_request, "error sending request"),
}


@pytest.mark.parametrize("what", PASSES)
def test_what_may_pass_is_tried_again_and_then_told(what: str, file: BucketPath, proxy: Proxy) -> None:
    fault, found = PASSES[what]
    proxy.faults = [("PUT", fault)]
    file.put(b"1")
    assert file.read_bytes() == b"1"
    proxy.faults = [("PUT", fault)] * 2
    with pytest.raises(StoreError, match=rf"does not answer for {file} \(.*{found}.*nothing is lost$"):
        file.put(b"2")
    assert file.read_bytes() == b"1"


def test_a_refused_connection_names_the_endpoints_variable(environment: None) -> None:
    with pytest.raises(
        StoreError, match=r"does not answer .*: Connection refused\); see that it can be reached \(AWS_ENDPOINT_URL\)"
    ):
        BucketPath(f"s3://{BUCKET}/file").exists()


def test_a_head_with_status_400_has_no_words_and_may_be_the_region(file: BucketPath, proxy: Proxy) -> None:
    proxy.faults = [("HEAD", error(400, "AuthorizationHeaderMalformed"))]
    with pytest.raises(StoreRefuses, match=r"400 Bad Request:?\); set AWS_REGION to .*, and set the AWS_"):
        file.exists()


def test_a_profile_that_does_not_exist_is_named(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"no client for s3://\S+ \(.*nobody.*\); correct what the variables and files"):
        BucketPath(f"s3://{BUCKET}/file").exists()


def test_a_profile_with_a_region_alone_gives_the_region(
    file: BucketPath, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = eu-west-3\n")
    file.put(b"1")
    assert "Credential=testing/" in proxy.requests[0].headers["authorization"]
    assert "/eu-west-3/s3/" in proxy.requests[0].headers["authorization"]
    client.store_of.cache_clear()
    monkeypatch.setenv("AWS_REGION", "eu-north-1")  # goes before the profile's
    file.put(b"1")
    assert "/eu-north-1/s3/" in proxy.requests[1].headers["authorization"]


def test_a_profiles_credentials_are_asked_for_again_before_they_expire(
    environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    given = client.profile_options()["credential_provider"]()
    assert (given["access_key_id"], given["secret_access_key"]) == ("a", "b")
    # boto3 renews what has less than 15 minutes left.
    assert given["expires_at"] - datetime.now(UTC) <= timedelta(minutes=10)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/a/../b", "s3://bucket/..", "s3://bucket/./a", "s3://bucket/a/.", "s3://b/a//b"]
)
def test_a_uri_with_an_empty_part_or_one_of_dots_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="expected s3://bucket/prefix"):
        BucketPath(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/a..b", "s3://bucket/.hidden", "s3://bucket/...", "s3://bucket/a./b"])
def test_dots_in_a_name_are_a_name(uri: str) -> None:
    assert str(BucketPath(uri)) == uri
