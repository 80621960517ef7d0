"""A machine with a cluster on moto's EC2 declared; its ssh and rsync only take notes."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from ec2 import NAME, REGION, Moto, is_open

from cropscore_ray.clusters import contexts
from cropscore_ray.clusters.declared import aws

FAKE_SSH = """\
#!/bin/sh
printf 'ssh %s\\n' "$*" >> "$NOTES"
case "$*" in
  *"command -v docker"*) echo /usr/bin/docker ;;
  */proc/meminfo*) echo 'MemAvailable: 8000000 kB' ;;
  *.Config.Image*) echo registry.example/cropscore:1 ;;
  *"printenv HOME"*) echo /home/worker ;;
  *.Config.Env*) echo '["HOME=/home/worker"]' ;;
  *.State.Running*) grep -q 'docker run' "$NOTES" && echo true ;;
esac
exit 0
"""
FAKE_RSYNC = """\
#!/bin/sh
printf 'rsync %s\\n' "$*" >> "$NOTES"
for one in "$@"; do [ -d "$one" ] && stat -c 'sent with mode %a: %n' "${one%/}"/* >> "$NOTES"; done
exit 0
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    deadline_s = time.monotonic() + 60
    while not is_open(port):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    yield Moto(f"http://127.0.0.1:{port}")
    process.terminate()
    process.wait()


@pytest.fixture
def moto(server: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    server.post("reset")
    yield server
    server.check_permissions(False)


@pytest.fixture
def home(tmp_path: Path, moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's machine; what is told to ssh and rsync there stands in `notes`."""
    for folder in ("bin", "tmp"):
        (tmp_path / folder).mkdir()
    for name, text in {"ssh": FAKE_SSH, "rsync": FAKE_RSYNC}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for name, value in {
        "HOME": str(tmp_path),
        "NOTES": str(tmp_path / "notes"),
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "TMPDIR": str(tmp_path / "tmp"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def config(home: Path) -> aws.AwsConfig:
    """A cluster whose security group and instance profiles are there."""
    ec2, iam = boto3.Session().client("ec2", REGION), boto3.Session().client("iam", REGION)
    group = ec2.create_security_group(GroupName=NAME, Description=NAME)["GroupId"]
    for role in ("head", "worker"):
        iam.create_instance_profile(InstanceProfileName=f"{NAME}-{role}")
    return aws.AwsConfig(
        name=NAME,
        image="registry.example/cropscore:1",
        security_group=group,
        bucket="photos",
        region=REGION,
        ami="ami-12c6146b",
        token_folder=str(contexts.token_file(NAME).parent),
    )


@pytest.fixture
def file(home: Path, config: aws.AwsConfig) -> Path:
    path = home / "aws.yaml"
    path.write_text(aws.files(config, "")["aws.yaml"])
    return path
