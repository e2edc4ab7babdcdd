"""A Kerberos realm of its own in the lab: a real KDC in `inside`, with all its files below the lab's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.peers import LIBRARIES, unpacked

if TYPE_CHECKING:
    from tests.lab.lab import Lab

REALM = "ALGATE.TEST"
USER, PASSWORD = "ann", "secret of ann"
_PLUGINS = LIBRARIES / "krb5/plugins/kdb"


class Kerberos:
    """A KDC with the user ann and the service rcmd/HOST, whose key is in `keytab`."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._lab = lab
        self.realm = REALM
        self.home = lab.tmp / "krb5"
        self.home.mkdir()
        self.keytab = self.home / "keytab"
        self.cache = self.home / "ccache"
        conf, kdc = self.home / "krb5.conf", self.home / "kdc.conf"
        conf.write_text(
            f"[libdefaults]\n default_realm = {REALM}\n dns_lookup_kdc = false\n dns_lookup_realm = false\n"
            " rdns = false\n dns_canonicalize_hostname = false\n udp_preference_limit = 1\n"
            f"[realms]\n {REALM} = {{\n kdc = 127.0.0.1:88\n }}\n"
            f"[dbmodules]\n db_module_dir = {_PLUGINS}\n"
            f"[logging]\n kdc = FILE:{lab.logs / 'kdc.log'}\n"
        )
        kdc.write_text(
            f"[kdcdefaults]\n kdc_listen = 127.0.0.1:88\n kdc_tcp_listen = 127.0.0.1:88\n"
            f"[realms]\n {REALM} = {{\n database_name = {self.home}/db\n key_stash_file = {self.home}/stash\n"
            f" acl_file = {self.home}/acl\n }}\n"
            f"[dbmodules]\n db_module_dir = {_PLUGINS}\n"
        )
        # Each file by its name: nothing of the machine's own Kerberos is read or written.
        self.env = {"KRB5_CONFIG": str(conf), "KRB5_KDC_PROFILE": str(kdc), "KRB5CCNAME": f"FILE:{self.cache}"}
        self._run("kdb5_util", "create", "-s", "-P", "master", "-r", REALM)
        self._run("kadmin.local", "addprinc", "-pw", PASSWORD, USER)
        self._run("kadmin.local", "addprinc", "-randkey", f"rcmd/{host}")
        self._run("kadmin.local", "ktadd", "-k", str(self.keytab), f"rcmd/{host}")
        self.process = lab.popen("inside", [unpacked("krb5-kdc", "usr/sbin/krb5kdc"), "-n"], env=self.env)
        lab.wait_for(self._kinit, 10, "the KDC to give a ticket" + lab.tail_of_logs())

    def renew_key(self, host: str) -> None:
        """A new key for the service, beside the old one in the keytab, which is replaced as a whole."""
        fresh = self.home / "keytab.new"
        fresh.write_bytes(self.keytab.read_bytes())
        self._run("kadmin.local", "ktadd", "-k", str(fresh), f"rcmd/{host}")
        fresh.replace(self.keytab)

    def forget_tickets(self) -> None:
        """Let the user get a ticket anew; one for the service comes when it is needed."""
        assert self._kinit()

    def _run(self, program: str, *arguments: str) -> None:
        self._lab.run("inside", [unpacked("krb5-kdc", f"usr/sbin/{program}"), *arguments], env=self.env)

    def _kinit(self) -> bool:
        done = self._lab.run("inside", ["kinit", USER], stdin=f"{PASSWORD}\n", env=self.env, check=False)
        return done.returncode == 0

    def stop(self) -> None:
        self._lab.stop(self.process)
