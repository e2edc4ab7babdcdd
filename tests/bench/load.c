/* The load of the benchmark: both ends of what goes through a gateway. One thread and epoll, but for streams.
 *
 *   load serve PORT                                        the server; a connection's first byte says what it wants:
 *                                                          E echo, S sink (says the count when nothing comes for a while),
 *                                                          G source, C one byte and end
 *   load rate   VIA HOST PORT CONCURRENT SECONDS           connections/s, each a handshake, a byte, an end;
 *                                                          and how many were made and failed in each tenth of a second
 *                                                          since "begin" (of the monotonic clock)
 *   load stream VIA HOST PORT STREAMS SECONDS up|down      Gbit/s at the receiver
 *   load echo   VIA HOST PORT FLOWS SECONDS PER_SECOND     latency of 64-byte echoes, microseconds: p50 p99
 *   load hold   VIA HOST PORT FLOWS                        opens flows, an echo through each, says how many there are,
 *                                                          holds them until its stdin ends
 *
 * VIA is "direct" or ADDRESS:PORT of a SOCKS 5 server. The answer is one line of JSON on stdout.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ECHO = 64, BLOCK = 256 * 1024, EVENTS = 256 };
enum { QUIET = 5000, STUCK = 5 }; /* microseconds without a byte after which a sink says its count; seconds */

static struct sockaddr_in via, target;
static int socks;
static char block[BLOCK];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void read_address(struct sockaddr_in *address, const char *host, int port) {
    memset(address, 0, sizeof *address);
    address->sin_family = AF_INET;
    address->sin_port = htons(port);
    if (inet_pton(AF_INET, host, &address->sin_addr) != 1) die(host);
}

static void read_via(char *text) {
    char *colon = strchr(text, ':');
    if (!colon) return;
    *colon = 0;
    socks = 1;
    read_address(&via, text, atoi(colon + 1));
}

static int no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* --- the server ------------------------------------------------------------------------------------------------- */

static void *serve_stream(void *argument) {
    int fd = (int)((intptr_t)argument >> 8), kind = (intptr_t)argument & 0xff;
    uint64_t total = 0;
    ssize_t n;
    if (kind == 'G')
        while (send(fd, block, BLOCK, 0) > 0) {}
    else {
        /* Not when the sender has half-closed its end: some peers end the connection then. */
        struct timeval quiet = {.tv_usec = QUIET};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &quiet, sizeof quiet);
        while ((n = recv(fd, block, BLOCK, MSG_TRUNC)) > 0 || (n < 0 && errno == EAGAIN)) {
            if (n > 0) total += n;
            else if (send(fd, &total, sizeof total, MSG_NOSIGNAL) < 0) break;
        }
    }
    close(fd);
    return NULL;
}

static void serve(int port) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, epoll = epoll_create1(0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = listener}, events[EVENTS];
    static unsigned char kinds[1 << 20];
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 8192)) die("listen");
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.u64;
            char buffer[4096];
            if (fd == listener) {
                fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                kinds[fd] = 0;
                event.data.u64 = no_delay(fd);
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
                continue;
            }
            ssize_t n = recv(fd, buffer, kinds[fd] ? sizeof buffer : 1, 0);
            if (n < 0 && errno == EAGAIN) continue;
            if (n <= 0) {
                close(fd);
            } else if (!kinds[fd]) {
                pthread_t thread;
                kinds[fd] = buffer[0];
                if (kinds[fd] == 'C') {
                    if (send(fd, "c", 1, 0) != 1) perror("answer");
                    close(fd);
                } else if (kinds[fd] == 'S' || kinds[fd] == 'G') {
                    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
                    int blocking = 0;
                    if (ioctl(fd, FIONBIO, &blocking)) die("ioctl");
                    pthread_create(&thread, NULL, serve_stream, (void *)((intptr_t)fd << 8 | kinds[fd]));
                    pthread_detach(thread);
                }
            } else if (send(fd, buffer, n, 0) != n)
                close(fd);
        }
    }
}

/* --- the client: a connection opens in steps, each when the one before it is answered ----------------------------- */

enum { CONNECTING, GREETED, REQUESTED, OPEN };

struct conn {
    int fd, step, got;
    double sent;
};

static int start(struct conn *c, int epoll) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) return -1;
    no_delay(c->fd);
    c->step = CONNECTING;
    c->got = 0;
    struct sockaddr_in *to = socks ? &via : &target;
    if (connect(c->fd, (struct sockaddr *)to, sizeof *to) && errno != EINPROGRESS) {
        close(c->fd);
        return -1;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

/* Go on opening; when it is open, send `first`. 1: just opened, 0: not yet, -1: failed. */
static int advance(struct conn *c, int epoll, char first) {
    unsigned char buffer[16];
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    int error = 0;
    socklen_t length = sizeof error;
    ssize_t n;
    switch (c->step) {
    case CONNECTING:
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) return -1;
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
        if (!socks) break;
        c->step = GREETED;
        return send(c->fd, "\5\1\0", 3, MSG_NOSIGNAL) == 3 ? 0 : -1;
    case GREETED:
        if (recv(c->fd, buffer, 2, 0) != 2 || buffer[1]) return -1;
        memcpy(buffer, "\5\1\0\1", 4);
        memcpy(buffer + 4, &target.sin_addr, 4);
        memcpy(buffer + 8, &target.sin_port, 2);
        c->step = REQUESTED;
        return send(c->fd, buffer, 10, MSG_NOSIGNAL) == 10 ? 0 : -1;
    case REQUESTED:
        n = recv(c->fd, buffer, 10 - c->got, 0);
        if (n <= 0 || (c->got == 0 && n > 1 && buffer[1])) return -1;
        c->got += n;
        if (c->got < 10) return 0;
    }
    c->step = OPEN;
    c->got = 0;
    return first == 0 || send(c->fd, &first, 1, MSG_NOSIGNAL) == 1 ? 1 : -1;
}

static void rate(int concurrent, double seconds) {
    int epoll = epoll_create1(0);
    struct conn *conns = calloc(concurrent, sizeof *conns);
    struct epoll_event events[EVENTS];
    long done = 0, failed = 0;
    double begin = now(), end = begin + seconds;
    int *tenths = calloc((size_t)(seconds * 10) + 10, sizeof *tenths);
    int *failures = calloc((size_t)(seconds * 10) + 10, sizeof *failures);
    for (int i = 0; i < concurrent; i++)
        if (start(&conns[i], epoll)) die("start");
    while (now() < end) {
        int count = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            struct conn *c = events[i].data.ptr;
            char buffer[16];
            if (c->step < OPEN) {
                if (advance(c, epoll, 'C') >= 0) continue;
                failed++, failures[(int)((now() - begin) * 10)]++;
            } else {
                ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
                if (n > 0) {
                    c->got += n;
                    continue;
                }
                if (n == 0 && c->got == 1) done++, tenths[(int)((now() - begin) * 10)]++;
                else failed++, failures[(int)((now() - begin) * 10)]++;
            }
            close(c->fd);
            while (start(c, epoll)) {
                failed++, failures[(int)((now() - begin) * 10)]++;
                usleep(1000);
            }
        }
    }
    printf("{\"rate\": %.1f, \"done\": %ld, \"failed\": %ld, \"tenths\": [", done / (now() - begin), done, failed);
    for (int i = 0; i < (int)(seconds * 10); i++) printf("%s%d", i ? ", " : "", tenths[i]);
    printf("], \"failures\": [");
    for (int i = 0; i < (int)(seconds * 10); i++) printf("%s%d", i ? ", " : "", failures[i]);
    printf("], \"begin\": %.6f}\n", begin);
}

/* Opens echoes, `window` at a time, until none has come for a while; how many there are, each with a byte echoed: a
 * gateway may accept what it then cannot carry. */
static int open_all(struct conn *conns, int flows, int epoll, int window) {
    int started = 0, opened = 0, failed = 0;
    struct epoll_event events[EVENTS];
    double end = now() + STUCK;
    while (opened + failed < flows && now() < end) {
        while (started < flows && started - opened - failed < window)
            if (start(&conns[started++], epoll)) failed++;
        int count = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            struct conn *c = events[i].data.ptr;
            char byte;
            int state;
            if (c->step < OPEN) {
                state = advance(c, epoll, 'E');
                if (state > 0) state = send(c->fd, "e", 1, MSG_NOSIGNAL) == 1 ? 0 : -1;
            } else
                state = recv(c->fd, &byte, 1, 0) == 1 ? 1 : -1;
            if (state > 0) opened++, end = now() + STUCK;
            if (state < 0) {
                failed++;
                close(c->fd);
                c->fd = -1;
            }
        }
    }
    return opened;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void echo(int flows, double seconds, double per_second) {
    int epoll = epoll_create1(0), next = 0;
    struct conn *conns = calloc(flows, sizeof *conns);
    struct epoll_event events[EVENTS];
    double *times = calloc((size_t)(per_second * seconds) + 1, sizeof *times);
    long sent = 0, count = 0, limit = per_second * seconds;
    char data[ECHO] = {0};
    int opened = open_all(conns, flows, epoll, 50);
    if (opened < flows) {
        printf("{\"opened\": %d}\n", opened);
        return;
    }
    double begin = now();
    while (now() < begin + seconds + 1 && count < limit) {
        double elapsed = now() - begin;
        while (sent < limit && sent < elapsed * per_second) {
            struct conn *c = &conns[next++ % flows];
            if (c->sent) { /* the last one is still under way: the gateway does not keep up */
                sent++;
                limit--;
                continue;
            }
            c->sent = now();
            c->got = 0;
            if (send(c->fd, data, ECHO, MSG_NOSIGNAL) != ECHO) die("send");
            sent++;
        }
        int ready = epoll_wait(epoll, events, EVENTS, sent < limit ? 0 : 10);
        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;
            char buffer[ECHO];
            ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
            if (n <= 0) die("echo");
            c->got += n;
            if (c->got == ECHO) {
                times[count++] = now() - c->sent;
                c->sent = 0;
            }
        }
        if (!ready && sent < limit) usleep(50); /* leave the processor to the others */
    }
    qsort(times, count, sizeof *times, compare);
    printf("{\"p50\": %.1f, \"p99\": %.1f, \"count\": %ld, \"opened\": %d}\n", times[count / 2] * 1e6,
           times[count * 99 / 100] * 1e6, count, opened);
}

static void hold(int flows) {
    int epoll = epoll_create1(0);
    struct conn *conns = calloc(flows, sizeof *conns);
    printf("{\"opened\": %d}\n", open_all(conns, flows, epoll, 100));
    fflush(stdout);
    char end;
    while (read(0, &end, 1) > 0) {}
}

/* --- streams ----------------------------------------------------------------------------------------------------- */

static int is_up;
static double until, duration;
static pthread_barrier_t barrier;

static void *stream_one(void *argument) {
    uint64_t *total = argument;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    unsigned char reply[10];
    struct sockaddr_in *to = socks ? &via : &target;
    if (connect(no_delay(fd), (struct sockaddr *)to, sizeof *to)) die("connect");
    if (socks) {
        unsigned char request[10] = "\5\1\0\1";
        memcpy(request + 4, &target.sin_addr, 4);
        memcpy(request + 8, &target.sin_port, 2);
        if (send(fd, "\5\1\0", 3, 0) != 3 || recv(fd, reply, 2, MSG_WAITALL) != 2) die("greeting");
        if (send(fd, request, 10, 0) != 10 || recv(fd, reply, 10, MSG_WAITALL) != 10 || reply[1]) die("request");
    }
    if (send(fd, is_up ? "S" : "G", 1, 0) != 1) die("kind");
    pthread_barrier_wait(&barrier);
    if (is_up) {
        uint64_t sent = 0;
        ssize_t n;
        while (now() < until) {
            if ((n = send(fd, block, BLOCK, 0)) <= 0) die("send");
            sent += n;
        }
        while (*total != sent)
            if (recv(fd, total, sizeof *total, MSG_WAITALL) != sizeof *total) die("count");
    } else {
        ssize_t n;
        while (now() < until) {
            if ((n = recv(fd, block, BLOCK, MSG_TRUNC)) <= 0) die("recv");
            *total += n;
        }
    }
    close(fd);
    return NULL;
}

static void stream(int streams, double seconds) {
    pthread_t threads[streams];
    uint64_t totals[streams], total = 0;
    memset(totals, 0, sizeof totals);
    pthread_barrier_init(&barrier, NULL, streams + 1);
    until = now() + 3600;
    for (int i = 0; i < streams; i++) pthread_create(&threads[i], NULL, stream_one, &totals[i]);
    double begin = now();
    until = begin + seconds;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < streams; i++) pthread_join(threads[i], NULL), total += totals[i];
    duration = now() - begin;
    printf("{\"gbit\": %.3f, \"bytes\": %llu}\n", total * 8 / duration / 1e9, (unsigned long long)total);
}

int main(int argc, char **argv) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && !strcmp(argv[1], "serve")) serve(atoi(argv[2]));
    if (argc < 6) return 2;
    read_via(argv[2]);
    read_address(&target, argv[3], atoi(argv[4]));
    int number = atoi(argv[5]);
    double seconds = argc > 6 ? atof(argv[6]) : 0;
    if (!strcmp(argv[1], "rate")) rate(number, seconds);
    else if (!strcmp(argv[1], "hold")) hold(number);
    else if (!strcmp(argv[1], "echo") && argc > 7) echo(number, seconds, atof(argv[7]));
    else if (!strcmp(argv[1], "stream") && argc > 7) {
        is_up = !strcmp(argv[7], "up");
        stream(number, seconds);
    } else return 2;
    return 0;
}
