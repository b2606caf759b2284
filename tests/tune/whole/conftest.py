"""Fixtures of the tests with an object store: an S3 server (moto) on this machine, and a bucket in it."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.support.tune.mirrored import SECRET


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="module")
def environment(server: str) -> Iterator[None]:
    """Set credentials and endpoint of the store, also for Ray clusters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture
def bucket(environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "this-machine"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="studies")
    yield "s3://studies"
    found = client.list_objects_v2(Bucket="studies").get("Contents", [])
    for start in range(0, len(found), 1000):
        client.delete_objects(
            Bucket="studies", Delete={"Objects": [{"Key": o["Key"]} for o in found[start : start + 1000]]}
        )
