"""A real ZooKeeper server on this machine, for `ambry dev-cluster` and for tests: found, started, and stopped again.

Knows the program and its files; what is kept in it is the business of `ambry.cluster`. One server, no ensemble: what
replicates ZooKeeper's own data is ZooKeeper's own way.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from ambry.cli.ports import free_port
from ambry.errors import CannotStart

HOME_VARIABLE: Final = "ZOOKEEPER_HOME"
"""Environment variable with the folder of an unpacked distribution of Apache ZooKeeper."""

HOW_TO_GET: Final = (
    "on Debian or Ubuntu: apt-get install zookeeper; elsewhere unpack apache-zookeeper-3.8 or newer from "
    f"zookeeper.apache.org and set {HOME_VARIABLE} to its folder. It needs Java: apt-get install default-jre-headless"
)

_DEBIAN_JAR: Final = Path("/usr/share/java/zookeeper.jar")
_START_S: Final = 60.0
_STOP_S: Final = 10.0
_TICK_MS: Final = 500
"""Sessions may be as short as two ticks."""

_LOG_SETTINGS: Final = """\
<configuration>
  <appender name="E" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %p %c{1}: %m%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="E"/></root>
</configuration>
"""


def find_classpath(environment: "os._Environ[str] | dict[str, str]" = os.environ) -> str | None:
    """The class path of a ZooKeeper on this machine, or None."""
    home = environment.get(HOME_VARIABLE)
    if home:
        jars = sorted((Path(home) / "lib").glob("*.jar"))
        return ":".join(map(str, jars)) if jars else None
    return str(_DEBIAN_JAR) if _DEBIAN_JAR.exists() else None


class LocalZooKeeper:
    """One server. Data stay in its folder, so it may be stopped and started again."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Port 0: any free one. Raises CannotStart when there is no ZooKeeper or no Java."""
        classpath = find_classpath()
        java = shutil.which("java")
        if classpath is None or java is None:
            missing = "Java" if classpath is not None else "ZooKeeper"
            raise CannotStart(f"there is no {missing} on this machine; {HOW_TO_GET}")
        self.folder = folder
        self.port = port or free_port()
        self.command = [
            *(java, "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-Dzookeeper.admin.enableServer=false", "-Dzookeeper.4lw.commands.whitelist=srvr"),
            *(f"-Dlogback.configurationFile={folder / 'logback.xml'}", "-cp", classpath),
            *("org.apache.zookeeper.server.ZooKeeperServerMain", str(folder / "zoo.cfg")),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def hosts(self) -> str:
        """What clients connect to."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it answers. Raises CannotStart with the end of its log."""
        assert self._process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "logback.xml").write_text(_LOG_SETTINGS)
        (self.folder / "zoo.cfg").write_text(
            f"tickTime={_TICK_MS}\ndataDir={self.folder / 'data'}\nclientPort={self.port}\n"
            "clientPortAddress=127.0.0.1\nmaxClientCnxns=0\nautopurge.snapRetainCount=3\nautopurge.purgeInterval=1\n"
        )
        with (self.folder / "log").open("ab") as log:
            # A group of its own: Ctrl-C at a terminal is for whoever started us, who stops it in order.
            self._process = subprocess.Popen(  # noqa: S603 -- found above, no shell
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        give_up_at = time.monotonic() + _START_S
        while not _answers(self.port):
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self.stop()
                end = (self.folder / "log").read_text(errors="replace")[-1000:]
                raise CannotStart(f"ZooKeeper did not start on port {self.port}: {end.strip() or 'it says nothing'}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it; killed when it takes long. Data stay."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wipe(self) -> None:
        """Throw its data away, while it is stopped: the total loss of an ensemble."""
        assert self._process is None
        shutil.rmtree(self.folder / "data", ignore_errors=True)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"srvr")
            return connection.recv(64).startswith(b"Zookeeper version")
    except OSError:
        return False
