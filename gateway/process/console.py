"""The console's process: gevent, no privilege. Entry module: `python -m gateway.process.console BOOT_FD`."""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import sys

if __name__ == "__main__":  # structlog loads rich where it is there: four megabytes that this process does not need
    sys.modules["rich"] = None  # type: ignore[assignment]

import os
import signal
from itertools import count

import gevent
import gevent.socket as gsocket
from gevent.event import AsyncResult

from gateway.config.schema import parse_endpoint
from gateway.console.app import App
from gateway.console.gatherer import Gatherer, NoProcessAnswer
from gateway.console.serve import serve
from gateway.console.totals import Totals
from gateway.front.accept import Acceptor
from gateway.net.slices import slices
from gateway.observe.admin import Rows, answer, read_rows
from gateway.observe.counters import recent_rows
from gateway.observe.lag import LagMeter
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.metrics import metrics_row
from gateway.process.boot import Boot
from gateway.process.confine import hide, restrict_calls
from gateway.process.lifeline import Answering, Ask, Ping, Pong, Ready, Report, hear_supervisor, send

log = get_logger()

LONGEST_TOKEN = 200


class Console:
    """All parts of the process, built from its boot document."""

    def __init__(self, boot: Boot) -> None:
        config = boot.config
        self._boot = boot
        self._lifeline = gsocket.socket(fileno=boot.lifeline)
        self._numbers = count(1)
        self._waiting: dict[int, AsyncResult[tuple[str, gsocket.socket | None]]] = {}
        self._lag = LagMeter()
        self._gatherer = Gatherer(boot.names, self._ask, Totals(boot.files["totals"]))
        token = os.pread(boot.files["token"], LONGEST_TOKEN, 0).decode()
        self._app = App(
            public=not parse_endpoint(config.console.listen).ip.is_loopback,
            hosts=config.console.hosts,
            gatherer=self._gatherer,
            token=token,
            token_file=f"{config.process.run_dir}/console.token",
        )
        self._verbs = {"status": self._status, "metrics": self._metrics, "events": recent_rows}

    def run(self) -> None:
        """Serve until SIGTERM, or until the supervisor is gone."""
        gevent.signal_handler(signal.SIGTERM, os._exit, 0)  # what is sent is of no value any more
        gevent.spawn(self._hear)
        gevent.spawn(self._gatherer.run)
        gevent.spawn(Acceptor().serve, gsocket.socket(fileno=self._boot.admin), self._on_admin)
        send(self._lifeline, Ready())
        assert self._boot.console is not None
        serve(gsocket.socket(fileno=self._boot.console), self._app, slices().wait)

    def _on_admin(self, connection: gsocket.socket, _address: tuple[object, ...]) -> None:
        answer(connection, self._verbs)

    def _status(self) -> Rows:
        return [{"process": "console", "pid": os.getpid(), "listen": self._boot.config.console.listen}]

    def _metrics(self) -> Rows:
        return [metrics_row("console")]

    def _ask(self, process: str, verb: str, id: str, timeout: float) -> Rows:
        """Ask a process through the supervisor. Raises NoProcessAnswer."""
        if process == "console":
            return self._verbs[verb]() if verb in self._verbs else []
        number = next(self._numbers)
        result: AsyncResult[tuple[str, gsocket.socket | None]] = AsyncResult()
        self._waiting[number] = result
        try:
            with gevent.Timeout(timeout):
                send(self._lifeline, Ask(number, process, verb, id))
                problem, connection = result.get() or ("", None)
                if connection is None:
                    raise NoProcessAnswer(problem)
                with connection:
                    connection.setblocking(True)
                    return read_rows(connection)
        except gevent.Timeout:
            raise NoProcessAnswer(f"no answer within {timeout:g} s") from None
        except OSError as error:
            raise NoProcessAnswer(error.strerror or str(error)) from error
        finally:
            del self._waiting[number]

    def _hear(self) -> None:
        while (heard := hear_supervisor(self._lifeline)) is not None:
            message, fds = heard
            match message:
                case Answering(number, problem) if number in self._waiting:
                    # A socket from now on: closed with the result, if its answer is not waited for any more.
                    self._waiting[number].set((problem, gsocket.socket(fileno=fds[0]) if fds else None))
                    continue
                case Ping():
                    send(self._lifeline, Pong())
                case Report():
                    log.info("status", **self._status()[0])
            for fd in fds:  # of an answer that is not waited for any more
                os.close(fd)
        log.error("supervisor.gone")
        os._exit(1)


def main() -> None:
    """Entry: the boot document's descriptor is the only argument."""
    hide()
    boot = Boot.from_memfd(int(sys.argv[1]))
    setup_logging("console", boot.config.log.settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    console = Console(boot)
    if reason := restrict_calls():
        log.warning("confine.unfiltered", reason=reason)
    console.run()


if __name__ == "__main__":
    main()
