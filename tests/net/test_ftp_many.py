"""Many small files at once: more pinholes a second than a client may open, which makes it wait and costs no file."""

from __future__ import annotations

import socket

import pytest

from tests.lab.lab import SERVER4, Lab
from tests.net.ftp_control import Control
from tests.net.ftp_script import PORT

FILES = 1000
SESSIONS = 20


@pytest.mark.parametrize("active", [True, pytest.param(False, marks=pytest.mark.long)], ids=["active", "passive"])
@pytest.mark.timeout(300)
def test_twenty_sessions_fetch_a_thousand_files(strict_lab: Lab, active: bool) -> None:
    gateway = strict_lab.start_gateway(strict_lab.write_config(pinhole={"rate": 100}))
    server = strict_lab.vsftpd()
    (server.root / "pub" / "many").mkdir()
    for number in range(FILES):
        server.put(f"pub/many/{number}", b"%d\n" % number)
    target = strict_lab.tmp / f"many-{active}"
    script = [
        f"set ftp:passive-mode {'no' if active else 'yes'}; set ftp:ssl-allow no; set net:timeout 20",
        "set net:max-retries 1; set ftp:use-mode-z no",
        f"open -u {server.user},{server.password} ftp://{SERVER4}",
        f"mirror --parallel={SESSIONS} pub/many {target}",
    ]
    strict_lab.run("inside", ["lftp", "-c", "; ".join(script)], 240)
    got = {path.name: path.read_bytes() for path in target.iterdir()}
    assert got == {str(number): b"%d\n" % number for number in range(FILES)}
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")
    assert gateway.admin("pinholes") == []
    assert not [line for line in gateway.log_lines() if "pinhole.refused" in line]
    server.stop()
    assert gateway.stop() == 0


@pytest.mark.parametrize("port", [3389, 6379, 8080, 5060])
def test_a_passive_port_may_be_that_of_a_service(strict_lab: Lab, port: int) -> None:
    """Servers outside take their passive ports at random; what is kept closed is a service inside."""
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"ports": [21, PORT]}}))
    with strict_lab.enter("outside"):
        control_listener = socket.create_server((SERVER4, PORT))
        data_listener = socket.create_server((SERVER4, port))
    with control_listener, data_listener:
        control = Control(strict_lab, SERVER4, PORT)
        control_listener.settimeout(10)
        server, _ = control_listener.accept()
        with server:
            server.sendall(b"220 ready\r\n")
            assert control.reply() == "220 ready"
            control.send(b"USER ann\r\n")
            server.sendall(b"230 in\r\n")
            assert control.reply() == "230 in"
            control.send(b"PASV\r\n")
            server.settimeout(10)
            asked = b""
            while not asked.endswith(b"PASV\r\n"):  # an answer that comes before the question opens nothing
                more = server.recv(100)
                assert more
                asked += more
            server.sendall(f"227 ({SERVER4.replace('.', ',')},{port >> 8},{port & 255})\r\n".encode())
            assert control.reply().startswith("227")
            data_listener.settimeout(10)
            with strict_lab.connect("inside", SERVER4, port, timeout=5) as data, data_listener.accept()[0] as there:
                junk = bytes(range(256)) * 300  # no module takes it for its own, whatever the port
                there.sendall(junk)
                there.shutdown(socket.SHUT_WR)
                data.settimeout(10)
                got = b""
                while more := data.recv(65536):
                    got += more
                assert got == junk
        control.close()
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")
    assert gateway.stop() == 0
