"""An RTSP server with pictures and sound, by GStreamer: `rtsp_server.py ADDRESS PORT`, run by the system's Python.
With a password as a third argument, by Digest, for the user ann.

Streams: /test (MJPEG and A-law), /record (for whoever publishes).
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
gi.require_version("GstRtsp", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

PICTURE = "video/x-raw,format=I420,width=160,height=120,framerate=15/1"
VIDEO = f"videotestsrc is-live=true ! {PICTURE} ! jpegenc ! rtpjpegpay name=pay0"
AUDIO = "audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1"
RECORD = "rtpjpegdepay name=depay0 ! fakesink"


def main() -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address(sys.argv[1])
    server.set_service(sys.argv[2])
    test = GstRtspServer.RTSPMediaFactory()
    test.set_launch(f"( {VIDEO} {AUDIO} )")
    test.set_shared(True)
    record = GstRtspServer.RTSPMediaFactory()
    record.set_launch(f"( {RECORD} )")
    record.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
    server.get_mount_points().add_factory("/test", test)
    server.get_mount_points().add_factory("/record", record)
    if len(sys.argv) > 3:
        auth = GstRtspServer.RTSPAuth()
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_digest("ann", sys.argv[3], token)
        for factory in (test, record):
            permissions = GstRtspServer.RTSPPermissions()
            for permission in ("media.factory.access", "media.factory.construct"):
                permissions.add_permission_for_role("user", permission, True)
            factory.set_permissions(permissions)
        server.set_auth(auth)
    if not server.attach(None):
        sys.exit("it cannot listen")
    print("listening", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
