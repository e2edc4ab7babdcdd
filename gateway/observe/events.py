"""What each event of the log means. Event names are stable, because people filter logs by them.

docs/reference/events.md is generated from this and from the calls that log (`gateway/cli/reference/events.py`).
"""

from __future__ import annotations

EVENTS = {
    "accept.exhausted": "No file descriptor is left for new connections; they wait in the listener's queue.",
    "accept.failed": "A connection to the command line's socket could not be accepted: no file descriptor is left.",
    "accept.recovered": "There are file descriptors again, after `after` seconds without.",
    "alg.broken": "A module failed, for `reason`, or is not installed. What it would read is relayed unread.",
    "alg.bypass": "The module stops reading this flow: the flow needs no gateway, or cannot be read. It is "
    "relayed untouched.",
    "alg.edit": 'Bytes were replaced, for `reason`. With `mode = "observe"` `applied` is false and the '
    "bytes were not replaced.",
    "alg.note": "A module noticed something and did not act on it: `code` and `detail`.",
    "alg.open": 'With `mode = "observe"`: a module would open a pinhole to `target`, for `reason`. `applied` is '
    "false: nothing is opened.",
    "alg.out": "A module had `calls` slow calls within `seconds` seconds. It reads nothing more in this process.",
    "alg.outlives": "A flow has ended or is relayed unread; its module keeps the pinholes that running calls "
    "have advertised.",
    "alg.revoke": "A client or server sent something that it has no right to. The flow can open no pinholes any more.",
    "alg.say": 'A module sent bytes of its own `to` a side, for `reason`. With `mode = "observe"` '
    "`applied` is false and they were not sent.",
    "alg.slow": "A call of a module has used `seconds` seconds of processor time.",
    "alg.stand_down": "Datagrams between this client and server pass untouched, because one of them handles NAT "
    "itself.",
    "alg.transfer": "A client asks for a transfer between two servers (FXP); `permitted` says whether the rules "
    "allow it.",
    "alg.unread": "A flow is relayed unread from now on: its module held too much or for too long, or used "
    "too much processor time.",
    "auth.ban": "A client has failed to authenticate too often, and is banned for a while.",
    "auth.banned": "A banned client connected. It was offered no method with a secret.",
    "auth.failed": "Authentication failed: wrong credentials. fail2ban reads this line.",
    "auth.no_method": "The client offers no method that is allowed.",
    "auth.overloaded": "Too many passwords wait to be checked; this one was rejected unchecked.",
    "auth.protection": "The client asks for less protection than `socks.gssapi.protection` allows.",
    "bind.denied": "A BIND that waits for its peer was ended, because the new rules do not permit it.",
    "broker.bad_message": "A message between a worker and the broker could not be read, and was ignored.",
    "broker.conntrack_failed": "The kernel did not delete a conntrack entry.",
    "broker.count_failed": "The kernel did not say how much has passed.",
    "broker.counters_failed": "The kernel did not say how much has passed.",
    "broker.failed": "The broker ends because of an error, and is replaced.",
    "broker.flood": "A worker sends more requests than the broker reads in a second; the rest waits.",
    "broker.foreign_unread": "Rules of others could not be read; a mapping may be granted that they go before.",
    "broker.hello": "A worker has connected to the broker. `keep` says whether its slot's pinholes stay open.",
    "broker.lost": "The broker does not answer. The requests that waited for it were refused.",
    "broker.netfilter_failed": "The kernel refused a change. The requests that needed it were refused.",
    "broker.offload": "The kernel cannot keep SIP and media out of this host's flowtables.",
    "broker.orphaned": "The supervisor has died. The broker ends and leaves its table; the kernel ends the pinholes.",
    "broker.reconcile_failed": "The table could not be read from the kernel; this is tried again.",
    "broker.stopped": "The broker has ended and removed its table.",
    "broker.table": "The nft table of pinholes is ready: created, or taken over from the previous broker.",
    "broker.elements_gone": "Another program deleted elements of the table. Those of open pinholes are restored.",
    "broker.table_disputed": "Another program removes the table again and again. It is left alone for `seconds` s.",
    "broker.table_failed": "The table could not be looked at, or created again. This is tried again soon.",
    "broker.table_gone": "Another program removed the table, or chains, sets or rules of it. It is created again.",
    "broker.table_restored": "The table was restored with all open pinholes.",
    "broker.worker_lost": "A worker's connection to the broker has ended, as it does after an upgrade.",
    "call.kick": "The media of a call were ended by `algate kick` or the console.",
    "certificate.expires": "A certificate, or an authority, that is in use ends in `days` days, on `date`; if that is "
    "negative, it has ended. Said once a day from 21 days before on. `key`: its key in the configuration.",
    "client.limit": "A client was refused a connection: it has as much of `kind` as [limits] allows "
    "(`bound=most`), or as is left for all others (`bound=share`).",
    "confine.unfiltered": "A process runs without a seccomp filter: no libseccomp, or a kernel without filters.",
    "console": "The console serves. `token` is the file with the token that changes require.",
    "console.denied": "A request to the console had a wrong token.",
    "console.error": "A request to the console failed.",
    "console.kick": "A flow, a pinhole or the media of a call were ended by the console.",
    "drain": "The gateway drains: it accepts no new connections, and waits `deadline` seconds for the "
    "flows that it has.",
    "drain.cut": "The time for draining is over; flows were reset before they had ended.",
    "config.doubt": "The configuration is valid but says something that is hardly meant. `algate check` gives "
    "the same warning.",
    "file.loaded": "A file that the configuration names has changed, and the new contents are used.",
    "file.rejected": "A file that the configuration names has changed and cannot be used. The old contents stay "
    "in use.",
    "flow.denied": "A flow was ended, because the new rules do not permit it.",
    "flow.departed": "This host no longer has `address`, which the flow used. The flow was reset.",
    "flow.end": "A flow has ended; `up` and `down` are bytes from and to the client, `duration` seconds.",
    "flow.kick": "A flow was ended by `algate kick` or the console.",
    "flow.open": "A flow has begun.",
    "forward.taken": "A forwarding of the configuration could not be opened, because its port or socket has a pinhole "
    "already. It is tried again.",
    "instance.name_taken": "Another program holds this instance's name in the network namespace, so a second gateway "
    "with that name would not be detected.",
    "listen.absent": "A listener's address is not, or no longer, on any interface. The listener serves as soon "
    "as it is.",
    "listen.present": "A listener's address is on an interface now.",
    "listen.waits": "A connection of this host uses a listener's port. The start waits for it, for a minute at most.",
    "log.lost": "The log could not be written (for example, because the disk is full): `lines` lines are missing.",
    "notify.failed": "A message to systemd could not be sent.",
    "nat.no_mirror": "The kernel refused a mirror of an ip rule by the incoming interface: the gateway's connections "
    "with a client's address do not follow that rule.",
    "nat.no_return_path": "The ip rule and routes that bring answers for connections with a client's address to this "
    "host could not be created. Redirected connections use the gateway's own address.",
    "nat.return_path_restored": "Another program removed the ip rule or routes that bring answers for connections with "
    "a client's address to this host. They were created again.",
    "packets.taken_over": "A new packets process has taken over the conversations of the previous one.",
    "pinhole.close": "A pinhole was closed, or its flow has ended.",
    "pinhole.expire": "A pinhole's time is over; it was closed unused.",
    "pinhole.flood": "A client opens pinholes too fast. Logged once for each flow; further refusals are silent.",
    "pinhole.kick": "A pinhole was closed by `algate kick` or the console.",
    "pinhole.moved": "The public address has changed. A pinhole was opened again at the new address.",
    "pinhole.open": "A pinhole was opened.",
    "pinhole.refused": "A pinhole was not opened; `rule` says by which rule, `detail` why.",
    "pinhole.lost": "An upstream does not wait for the peer any more, or has let in another host.",
    "pinhole.stranger": "A host other than the expected peer connected to a pinhole. Its connection was reset.",
    "pinhole.target_failed": "The peer connected to a pinhole, but the client's side could not be reached.",
    "pinhole.update": "The peers or the time of a conversation have changed.",
    "pinhole.use": "The peer has used the pinhole.",
    "portmap.rate": "A client asks by UPnP faster than it may; its connection was reset.",
    "portmap.rebinding": "A request for the pages of UPnP named another `host` than this one: a page of the web whose "
    "name was made to point here (DNS rebinding), or a client that uses a name. It was refused.",
    "portmap.unsubscribed": "A client took no events of UPnP any more; its subscription was ended.",
    "portmap.web_page": "A page of the web (`origin`) sent a request to the pages of UPnP. It was refused.",
    "portmap.address": "This router has another public address. The mappings of clients are opened again there.",
    "portmap.double_nat": "The public address is a private one: another NAT is in front of this router, and what "
    "clients are told is reachable from there only.",
    "portmap.epoch": "Clients are told that they have to ask for their mappings again, for `reason`: begin (there were "
    "none), lost (some are gone), address, upstream (what the router above gives is otherwise).",
    "portmap.gone": "A mapping's pinhole was closed by `algate kick`, or is lost. The mapping has ended.",
    "portmap.lost": "A mapping could not be opened again.",
    "portmap.recovered": "A new portmap process has taken over the mappings of the previous one; `lost` are not as "
    "they were.",
    "portmap.refused": "A client was refused a public port; `why` is the reason and `detail` says more.",
    "portmap.socket_failed": "A socket at which clients ask cannot be read; its interface may be gone.",
    "portmap.upstream": "A router above this one gives public ports, by `protocol`; `address` is its public one.",
    "portmap.upstream_kept": "A mapping could not be ended at the router above; it ends by its time.",
    "portmap.upstream_lost": "The router above does not answer any more. Clients are told this router's own address.",
    "portmap.upstream_moved": "The router above has another public address. It is asked for all mappings again.",
    "portmap.upstream_refused": "The router above has refused a mapping; `reason` is what it said.",
    "portmap.upstream_restarted": "The router above has lost what it gave. It is asked for all mappings again.",
    "portmap.unbound": "Clients cannot ask at an inside interface, because the port cannot be had. It is tried again.",
    "portmap.unsaid": "An answer or announcement could not be sent.",
    "process.died": "A process died, and is replaced.",
    "process.end": "A process has ended as it was told to.",
    "process.slow": "A process took more than a second to answer the supervisor's question whether it lives.",
    "process.hung": "A process does not answer any more; it is killed and replaced.",
    "process.killed": "A process did not end when told to, and was killed.",
    "process.nonsense": "A message of a process to the supervisor could not be read. The process is killed and "
    "replaced.",
    "process.start": "A process has started.",
    "publish.failed": "A published server could not be reached.",
    "queue.failed": "The packets process cannot read packets from the kernel's queue.",
    "quota.used_up": "The quota of a rule, a client or a user is used up. The flow was reset.",
    "ready": "The gateway serves.",
    "relay.failed": "Relaying the data of a pinhole could not begin.",
    "reload": "The configuration was read again and is in use; `changed` names the changed keys.",
    "reload.failed": "The new configuration cannot be used. The old one stays in use.",
    "reload.unanswered": "A process did not confirm the new configuration. It is replaced by a new process.",
    "retire": "A new version has taken over. This one lets its flows go on for `deadline` seconds at most.",
    "rule.deny": "A rule with `log` has denied a request.",
    "rule.permit": "A rule with `log` has permitted a request.",
    "rules.disputed": "Another program removes the iptables rules again and again. They are left alone for "
    "`seconds` seconds.",
    "rules.foreign": "A chain of another firewall seems to drop what the gateway admits. `line` is the rule that "
    "it needs.",
    "rules.gone": "Another program removed iptables rules that were applied; `missing` names the chains.",
    "rules.restore_failed": "The iptables rules could not be restored.",
    "rules.restored": "The iptables rules were restored.",
    "socks.denied": "A request was denied; `rule` names the rule.",
    "socks.failed": "A request could not be served. `failure` is what the client was told.",
    "socks.malformed": "A client sent something that is not SOCKS.",
    "socks.timeout": "A handshake took longer than `socks.handshake_timeout`.",
    "socks.tls_failed": "A TLS handshake failed, or a client's certificate is not accepted. `reason`: OpenSSL's.",
    "socks.udp_dropped": "A UDP association has ended: the number of its datagrams that were dropped, for each reason.",
    "socks.udp_stranger": "A UDP association received datagrams from a host to which its client has not sent any.",
    "start.failed": "A process could not start.",
    "status": "The answer to SIGUSR1: the state of the process, as in `algate status`.",
    "stopped": "The gateway has ended, and has removed everything that it made.",
    "supervisor.gone": "The supervisor has died. This process ends too.",
    "transparent.own_address": "A redirected connection uses this host's own address instead of its client's, because "
    "the broker could not make the socket (`rule`).",
    "transparent.failed": "A redirected connection could not be served; it was reset.",
    "transparent.refused": "A server refuses TCP at a port that is also read over UDP. Its client was refused as well.",
    "transparent.loop": "A redirected connection was addressed to the gateway itself. It was reset.",
    "upgrade.complete": "The processes of the previous version have ended.",
    "upgrade.failed": "The new processes could not take over. The old ones go on.",
    "upgrade.start": "New processes are being started, which will take over the listeners.",
}
