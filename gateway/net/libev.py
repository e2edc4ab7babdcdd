"""Events of libev, which gevent's watchers take as numbers (libev's ev.h)."""

EV_READ = 1
EV_WRITE = 2
