"""A player by GStreamer: `gst_player.py URL udp|tcp VERSION`, run by the system's Python; VERSION: of RTSP, 1-0 or 2-0.

Ends well when each stream of the server has brought twenty packets.
"""

import sys
from collections import Counter
from typing import Any

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402

WANTED, STREAMS = 20, 2


def main() -> None:
    Gst.init(None)
    url, transport, version = sys.argv[1:]
    pipeline = Gst.Pipeline.new("player")
    source = Gst.ElementFactory.make("rtspsrc", None)
    source.set_property("location", url)
    for name, value in (("protocols", transport), ("default-rtsp-version", version)):
        Gst.util_set_object_arg(source, name, value)
    pipeline.add(source)
    loop = GLib.MainLoop()
    came: Counter[str] = Counter()

    def arrived(sink: Any, _buffer: Any, _pad: Any) -> None:
        came[sink.get_name()] += 1
        if len(came) == STREAMS and min(came.values()) >= WANTED:
            GLib.idle_add(loop.quit)

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
