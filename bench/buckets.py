"""An S3 server on the loopback interface, for tests and faults: moto's, in a process of its own."""

import contextlib
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3

from embedmill.processes import free_port, process

BUCKET = "vectors"


def credentials(url: str) -> dict[str, str]:
    """The environment of a machine that uses this server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def s3_server(folder: Path, port: int | None = None, *, checked: bool = False) -> Iterator[str]:
    """A server with one empty bucket; yields its URL.

    Args:
        folder: takes its log.
        port: None for a free one.
        checked: refuse every request whose credentials are not known, once the bucket and ``a_user`` are there.
    """
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {"INITIAL_NO_AUTH_ACTION_COUNT": "4"} if checked else {}
    with process(command, folder / "s3.log", env=env) as server:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
                break
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"moto's server did not start:\n{(folder / 's3.log').read_text()}")
            time.sleep(0.05)
        client(url).create_bucket(Bucket=BUCKET)
        yield url


def a_user(url: str) -> dict[str, str]:
    """The credentials of a user who may do everything in S3, on a server that checks them."""
    options = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    iam = boto3.client("iam", endpoint_url=url, **options)
    iam.create_user(UserName="miller")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="miller", PolicyName="all", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="miller")["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def client(url: str):  # type: ignore[no-untyped-def]  # boto3 makes its classes when it runs
    """boto3's client, which owes nothing to pyarrow."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )
