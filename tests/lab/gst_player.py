"""A player by GStreamer: `gst_player.py URL udp|tcp VERSION [PAUSE]`, run by the system's Python. VERSION: of
RTSP, 1-0 or 2-0.

Ends well when each stream of the server has brought twenty packets; and, behind a pause of PAUSE seconds, sixty more,
as it may have held some.
"""

import sys
from collections import Counter
from typing import Any

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402

WANTED, MORE, STREAMS = 20, 60, 2


def main() -> None:
    Gst.init(None)
    url, transport, version = sys.argv[1:4]
    pauses = [int(seconds) for seconds in sys.argv[4:]]
    pipeline = Gst.Pipeline.new("player")
    source = Gst.ElementFactory.make("rtspsrc", None)
    source.set_property("location", url)
    for name, value in (("protocols", transport), ("default-rtsp-version", version)):
        Gst.util_set_object_arg(source, name, value)
    pipeline.add(source)
    loop = GLib.MainLoop()
    came: Counter[str] = Counter()
    wanted = WANTED
    has_enough = False

    def arrived(sink: Any, _buffer: Any, _pad: Any) -> None:
        nonlocal has_enough
        came[sink.get_name()] += 1
        if not has_enough and len(came) == STREAMS and min(came.values()) >= wanted:
            has_enough = True
            GLib.idle_add(rest if pauses else loop.quit)

    def rest() -> None:
        pipeline.set_state(Gst.State.PAUSED)
        GLib.timeout_add_seconds(pauses.pop(), go_on)

    def go_on() -> None:
        nonlocal has_enough, wanted
        came.clear()
        has_enough, wanted = False, MORE
        pipeline.set_state(Gst.State.PLAYING)

    def added(_source: Any, pad: Any) -> None:
        sink = Gst.ElementFactory.make("fakesink", None)
        sink.set_property("signal-handoffs", True)
        sink.connect("handoff", arrived)
        pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    def failed(_bus: Any, message: Any) -> None:
        error, detail = message.parse_error()
        sys.exit(f"{error} {detail}")

    source.connect("pad-added", added)
    bus = pipeline.get_bus()
    bus.add_signal_watch()
    bus.connect("message::error", failed)
    pipeline.set_state(Gst.State.PLAYING)
    loop.run()
    pipeline.set_state(Gst.State.NULL)
    print(dict(came))


if __name__ == "__main__":
    main()
