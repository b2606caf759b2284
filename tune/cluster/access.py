"""Who can reach Ray: tokens, addresses, and the folders from which Ray's processes import modules.

Whoever can send commands to a Ray cluster executes code as the user who started it. A Ray cluster therefore needs a
token, a secret in the file ~/.ray/auth_token of each user and machine (README.md of tune/, "Who can reach Ray").
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import ray
from ray._private import ray_constants
from ray.job_config import JobConfig
from rich.console import Console
from rich.markup import escape

from tune.study.manifest import StudyError

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # a request to Ray's control service, whose message may be empty
ANSWER_S = 10.0  # timeout of this request


def check_access(address: str | None, allow_open: bool, console: Console) -> None:
    """Disconnect from Ray and raise StudyError if the connected Ray cluster accepts commands without a token.

    `address` is the value of --address (None: Ray was started on this machine; it is checked, too). With `allow_open`
    (--allow-open-cluster), print a warning on `console` instead.
    """
    gcs_address = ray.get_runtime_context().gcs_address
    if requires_token(gcs_address):
        return
    if address:
        found, action = f"--address {address}: this Ray cluster", "start it with `export RAY_AUTH_MODE=token`"
    else:
        found, action = f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE')}: Ray on this machine", "unset the variable"
    danger = f"accepts commands without a token, so everybody who can reach {gcs_address} can run programs as its user"
    if allow_open:
        console.print(f"[yellow]warning: {escape(found)} {danger}[/yellow]", highlight=False, soft_wrap=True)
        return
    ray.shutdown()
    raise StudyError(
        f"{found} {danger}; expected a cluster that requires a token: {action} (tune/README.md), or add "
        "--allow-open-cluster if you trust all users of these machines and of their network"
    )


def requires_token(gcs_address: str) -> bool:
    """Return whether the Ray cluster whose control service listens at `gcs_address` refuses a request without a token.

    If RAY_USE_TLS is set, return True without a request: the cluster accepts only clients with a certificate, which
    protects it as well as a token. StudyError if there is no clear answer.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True
    with grpc.insecure_channel(gcs_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(QUESTION)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:  # type: ignore[attr-defined]
                return True
            raise StudyError(
                f"the Ray cluster at {gcs_address} does not say whether it requires a token ({error.code().name}); "  # type: ignore[attr-defined]
                "expected an answer within 10 s: repeat the command"
            ) from error
    return False


def private_token(create: bool = False) -> None:
    """Let only this user read Ray's token file; with `create`, create it with a new token if this user has no token.

    Ray would create it readable for all users. Ray finds its token in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH
    or in ~/.ray/auth_token.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if create and not named and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.touch(mode=0o600, exist_ok=False)
            temporary.write_text(secrets.token_hex(32))
            with suppress(FileExistsError):  # another process was faster: its token is used
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    if path.is_file() and path.stat().st_mode & 0o077 and path.stat().st_uid == os.geteuid():
        path.chmod(0o600)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let the processes of a Ray that is started in the `with` block listen on 127.0.0.1 only.

    Ray does this by itself on macOS. On Linux, its control service, raylets and workers listen on all interfaces.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


class OwnPath(JobConfig):
    """JobConfig for `ray.init` that keeps the driver's current folder out of the workers' search path for modules.

    Ray would put this folder first, and a file html.py in it would then be imported instead of Python's own module. The
    current folder is kept if it is the checkout, whose packages the workers import.
    """

    def _serialize(self) -> str:
        here = str(Path.cwd())
        self._py_driver_sys_path = [p for p in self._py_driver_sys_path if p != here or p == str(ROOT)]
        return super()._serialize()
