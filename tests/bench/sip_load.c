/* Calls over UDP for tests/bench/sip_calls.py.

   sip_load serve HOST PORT
       a server that answers INVITE with 180 and 200 (with a session description), BYE and OPTIONS with 200; on SIGTERM
       it says how many INVITEs it had, and how many of them named a private address (192.168.), and in a second line how
       many microseconds each message was on its way (all clocks are this host's: the header X-Sent tells).

   sip_load call SERVER PORT FIRST CLIENTS RATE SECONDS MEDIA [PROXY]
       CLIENTS sockets at 192.168.56.FIRST and above, port 5060, that make RATE calls a second together: INVITE with
       MEDIA streams, 180, 200, ACK, BYE, 200. Every message may be sent again after half a second, three times. Says
       calls made and failed, and in microseconds how long INVITE to 180 and BYE to 200 took (p50, p99); and a second line
       as the server does. With PROXY (an address) all goes to port 5060 there, as from a phone that has it for its
       outbound proxy: a Route in INVITE, and afterwards those that the answer's Record-Route says.

   sip_load count HOST PORT SECONDS
       counts datagrams, from the first one on.
   sip_load flood HOST PORT TO TO_PORT SECONDS
       sends RTP of 172 bytes, as many as it can.
   sip_load stream HOST PORT TO SECONDS RATE TO_PORT...
       sends RATE of them a second in turns, from PORT, PORT + 2 ... to each TO_PORT; says how many. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 512 /* calls of a client at a time */
#define MOST_DELAYS 100000
#define AGAIN 0.5
#define MOST_AGAIN 3

enum { FREE, INVITED, RINGING, ENDING };

struct call {
    int state, sent, slot;
    unsigned number;
    double at, since;
    char tag[32], route[512];
};

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int bound(const char *host, int port)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), size = 8 << 20;
    if (fd < 0 || inet_pton(AF_INET, host, &own.sin_addr) != 1)
        die(host);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&own, sizeof own))
        die("bind");
    return fd;
}

static unsigned delays[MOST_DELAYS];
static size_t delayed;

static size_t sent_now(char *out)
{
    return sprintf(out, "X-Sent: %.0f\r\n", now() * 1e6);
}

static void arrived(const char *data)
{
    const char *sent = strstr(data, "\r\nX-Sent: ");
    if (sent && delayed < MOST_DELAYS)
        delays[delayed++] = now() * 1e6 - atof(sent + 10);
}

static void show_delays(void)
{
    printf("\ndelays");
    for (size_t i = 0; i < delayed; i++)
        printf(" %u", delays[i]);
    printf("\n");
}

static size_t description(char *out, const char *host, int port, int media)
{
    size_t size = sprintf(out, "v=0\r\no=- 1 1 IN IP4 %s\r\ns=-\r\nc=IN IP4 %s\r\nt=0 0\r\n", host, host);
    for (int i = 0; i < media; i++)
        size += sprintf(out + size, "m=%s %d RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\n",
                        i ? "video" : "audio", port + 2 * i);
    return size;
}

/* The lines of a request that its answer repeats. */
static size_t echoed(char *out, const char *request)
{
    static const char *const names[] = {"Via:", "From:", "To:", "Call-ID:", "CSeq:", "Record-Route:"};
    size_t size = 0;
    for (const char *line = strstr(request, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        const char *end = strstr(line + 2, "\r\n");
        for (size_t i = 0; end && i < sizeof names / sizeof *names; i++) {
            size_t length = strlen(names[i]);
            if (strncmp(line + 2, names[i], length))
                continue;
            memcpy(out + size, line + 2, end - line - 2);
            size += end - line - 2;
            if (i == 2 && !memmem(line + 2, end - line - 2, ";tag=", 5))
                size += sprintf(out + size, ";tag=far");
            size += sprintf(out + size, "\r\n");
        }
    }
    return size;
}

static void answer(int fd, const struct sockaddr_in *to, const char *request, const char *status, const char *host, int media)
{
    char out[8192], body[2048];
    size_t length = media ? description(body, host, 30000, media) : 0;
    size_t size = sprintf(out, "SIP/2.0 %s\r\n", status);
    size += echoed(out + size, request);
    size += sent_now(out + size);
    size += sprintf(out + size, "Contact: <sip:bob@%s:5060>\r\n%sContent-Length: %zu\r\n\r\n", host,
                    media ? "Content-Type: application/sdp\r\n" : "", length);
    memcpy(out + size, body, length);
    sendto(fd, out, size + length, 0, (const struct sockaddr *)to, sizeof *to);
}

static int serve(const char *host, int port)
{
    int fd = bound(host, port);
    unsigned long invites = 0, private = 0;
    char data[8192];
    while (!stop) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        poll(&ready, 1, 200);
        for (;;) {
            struct sockaddr_in from;
            socklen_t size = sizeof from;
            ssize_t length = recvfrom(fd, data, sizeof data - 1, 0, (struct sockaddr *)&from, &size);
            if (length < 0)
                break;
            data[length] = 0;
            arrived(data);
            if (!strncmp(data, "INVITE ", 7)) {
                int media = 0;
                for (const char *at = data; (at = strstr(at, "\nm=")); at++)
                    media++;
                const char *c = strstr(data, "\nc=");
                invites++;
                private += c && !strncmp(c + 3, "IN IP4 192.168.", 15);
                answer(fd, &from, data, "180 Ringing", host, 0);
                answer(fd, &from, data, "200 OK", host, media);
            } else if (strncmp(data, "ACK ", 4))
                answer(fd, &from, data, "200 OK", host, 0);
        }
    }
    printf("invites %lu private %lu", invites, private);
    show_delays();
    return 0;
}

/* --- media ------------------------------------------------------------------------------------------------------- */

enum { BATCH = 64, PAYLOAD = 172 };

static int count(const char *host, int port, double seconds)
{
    int fd = bound(host, port);
    static char data[BATCH][2048];
    struct mmsghdr heads[BATCH];
    struct iovec parts[BATCH];
    unsigned long long packets = 0;
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){data[i], sizeof data[i]};
        heads[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[i], .msg_iovlen = 1}};
    }
    double begun = 0;
    while (!stop && (!begun || now() < begun + seconds)) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        poll(&ready, 1, 200);
        int got = recvmmsg(fd, heads, BATCH, 0, NULL);
        if (got > 0) {
            if (!begun)
                begun = now();
            packets += got;
        }
    }
    printf("packets %llu rate %.0f\n", packets, begun ? packets / (now() - begun) : 0.0);
    return 0;
}

static int flood(const char *host, int port, const char *to, int to_port, double seconds)
{
    int fd = bound(host, port);
    struct sockaddr_in far = {.sin_family = AF_INET, .sin_port = htons(to_port)};
    static unsigned char data[BATCH][PAYLOAD];
    struct mmsghdr heads[BATCH];
    struct iovec parts[BATCH];
    unsigned number = 0;
    if (inet_pton(AF_INET, to, &far.sin_addr) != 1 || connect(fd, (struct sockaddr *)&far, sizeof far))
        die(to);
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){data[i], sizeof data[i]};
        heads[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[i], .msg_iovlen = 1}};
    }
    for (double end = now() + seconds; now() < end && !stop;) {
        for (int i = 0; i < BATCH; i++, number++) {
            unsigned words[2] = {htonl(0x80000000 | (number & 0xffff)), htonl(number * 160)}; /* G.711 */
            memcpy(data[i], words, sizeof words);
        }
        if (sendmmsg(fd, heads, BATCH, 0) < 0 && errno == EAGAIN) {
            struct pollfd ready = {.fd = fd, .events = POLLOUT};
            poll(&ready, 1, 10);
        }
    }
    return 0;
}

static int stream(const char *host, int port, const char *to, double seconds, double rate, int many, char **ports)
{
    struct sockaddr_in far = {.sin_family = AF_INET};
    unsigned char data[PAYLOAD] = {0};
    unsigned long sent = 0;
    int *fds = calloc(many, sizeof *fds);
    if (inet_pton(AF_INET, to, &far.sin_addr) != 1)
        die(to);
    for (int i = 0; i < many; i++) {
        fds[i] = bound(host, port + 2 * i);
        far.sin_port = htons(atoi(ports[i]));
        if (connect(fds[i], (struct sockaddr *)&far, sizeof far))
            die("connect");
    }
    for (double begun = now(), at = begun; at < begun + seconds && !stop; at = now()) {
        while (sent < (at - begun) * rate) {
            unsigned number = sent / many, words[2] = {htonl(0x80000000 | (number & 0xffff)), htonl(number * 160)};
            memcpy(data, words, sizeof words);
            send(fds[sent++ % many], data, sizeof data, 0);
        }
        poll(NULL, 0, 1);
    }
    printf("sent %lu", sent);
    return 0;
}

/* --- calls ------------------------------------------------------------------------------------------------------- */

static struct sockaddr_in server;
static const char *server_text, *proxy;
static int *sockets, clients, first, media;
static struct call *calls; /* MOST of each client */
static int run;            /* no call of another run has this one's Call-ID or branch: a proxy remembers them for a while */

static void request(struct call *call, const char *method, int cseq)
{
    int client = call->slot / MOST, port = 10000 + 2 * media * (call->slot % MOST) % 20000;
    char out[8192], body[2048], host[32];
    sprintf(host, "192.168.56.%d", first + client);
    size_t length = cseq == 1 && *method == 'I' ? description(body, host, port, media) : 0;
    size_t size = sprintf(out,
        "%s sip:bob@%s SIP/2.0\r\nVia: SIP/2.0/UDP %s:5060;branch=z9hG4bK%d.%u%c;rport\r\nMax-Forwards: 70\r\n"
        "From: <sip:ann%d@example.test>;tag=n%u\r\nTo: <sip:bob@example.test>%s%s\r\nCall-ID: %u-%d@%d.%s\r\n"
        "CSeq: %d %s\r\nContact: <sip:ann%d@%s:5060>\r\nUser-Agent: load\r\n",
        method, server_text, host, run, call->number, *method, client, call->number, *call->tag ? ";tag=" : "", call->tag,
        call->number, call->slot, run, host, cseq, method, client, host);
    if (proxy)
        size += *call->route ? sprintf(out + size, "%s", call->route) : sprintf(out + size, "Route: <sip:%s;lr>\r\n", proxy);
    size += sent_now(out + size);
    size += sprintf(out + size, "%sContent-Length: %zu\r\n\r\n", length ? "Content-Type: application/sdp\r\n" : "", length);
    memcpy(out + size, body, length);
    sendto(sockets[client], out, size + length, 0, (struct sockaddr *)&server, sizeof server);
}

/* The route set of a dialog: what the answer has recorded, the last one first. */
static void learn_route(struct call *call, const char *answer)
{
    char line[256];
    *call->route = 0;
    while ((answer = strstr(answer, "\r\nRecord-Route:"))) {
        answer += 9; /* "Route: ..." */
        int length = snprintf(line, sizeof line, "%.*s\r\n", (int)strcspn(answer, "\r"), answer);
        size_t before = strlen(call->route);
        if (length >= (int)sizeof line || before + length >= sizeof call->route)
            die("a long Record-Route");
        memmove(call->route + length, call->route, before + 1);
        memcpy(call->route, line, length);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void show(const char *name, double *times, size_t count)
{
    qsort(times, count, sizeof *times, compare);
    if (count)
        printf(" %s_p50 %.0f %s_p99 %.0f", name, times[count / 2] * 1e6, name, times[count * 99 / 100] * 1e6);
}

static int call_all(double rate, double seconds)
{
    unsigned most = rate * seconds, made = 0, done = 0, failed = 0, again = 0;
    unsigned *next = calloc(clients, sizeof *next);
    double *setup = calloc(most + 1, sizeof *setup), *ended = calloc(most + 1, sizeof *ended);
    size_t setups = 0, ends = 0;
    struct epoll_event *ready = calloc(clients, sizeof *ready);
    int all = epoll_create1(0);
    double begun = now(), last_look = begun;
    for (int i = 0; i < clients; i++)
        if (epoll_ctl(all, EPOLL_CTL_ADD, sockets[i], &(struct epoll_event){.events = EPOLLIN, .data.u32 = i}))
            die("epoll");
    while (done + failed < most && !stop) {
        double at = now();
        while (made < most && begun + made / rate <= at) {
            int client = made % clients;
            struct call *call = NULL;
            for (unsigned tries = 0; tries < MOST && !call; tries++) {
                struct call *one = &calls[client * MOST + next[client]++ % MOST];
                if (one->state == FREE)
                    call = one;
            }
            made++;
            if (!call) {
                failed++;
                continue;
            }
            *call = (struct call){.state = INVITED, .slot = call - calls, .number = made, .at = at, .since = at};
            request(call, "INVITE", 1);
        }
        int many = epoll_wait(all, ready, clients, 1);
        for (int one = 0; one < many; one++) {
            int i = ready[one].data.u32;
            char data[8192];
            ssize_t length;
            while ((length = recv(sockets[i], data, sizeof data - 1, 0)) > 0) {
                unsigned number, slot;
                data[length] = 0;
                arrived(data);
                const char *id = strstr(data, "Call-ID: ");
                if (!id || sscanf(id, "Call-ID: %u-%u@", &number, &slot) != 2 || slot / MOST != (unsigned)i)
                    continue;
                struct call *call = &calls[slot];
                if (call->state == FREE || call->number != number)
                    continue; /* an answer that came twice */
                char own[64];
                sprintf(own, "192.168.56.%d:5060", first + i);
                const char *via = strstr(data, "Via: SIP/2.0/UDP ");
                at = now();
                if (!via || strncmp(via + 17, own, strlen(own))) {
                    failed++;
                    call->state = FREE;
                } else if (strstr(data, " BYE\r\n")) {
                    ended[ends++] = at - call->at;
                    done++;
                    call->state = FREE;
                } else if (!strncmp(data, "SIP/2.0 180", 11) && call->state == INVITED) {
                    setup[setups++] = at - call->since;
                    call->state = RINGING;
                } else if (!strncmp(data, "SIP/2.0 200", 11)) {
                    strcpy(call->tag, "far");
                    if (proxy)
                        learn_route(call, data);
                    request(call, "ACK", 1);
                    if (call->state != ENDING) {
                        request(call, "BYE", 2);
                        call->state = ENDING;
                        call->sent = 0;
                        call->at = at;
                    }
                }
            }
        }
        if (at > last_look + 0.05) {
            last_look = at;
            for (struct call *one = calls; one < calls + (size_t)clients * MOST; one++)
                if (one->state != FREE && at > one->at + AGAIN) {
                    if (one->sent++ >= MOST_AGAIN) {
                        one->state = FREE;
                        failed++;
                        continue;
                    }
                    one->at = at;
                    again++;
                    if (one->state == ENDING)
                        request(one, "BYE", 2);
                    else
                        request(one, "INVITE", 1);
                }
        }
    }
    printf("made %u done %u failed %u again %u rate %.1f", made, done, failed, again, done / (now() - begun));
    show("setup", setup, setups);
    show("bye", ended, ends);
    show_delays();
    return 0;
}

int main(int argc, char **argv)
{
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    if (argc == 4 && !strcmp(argv[1], "serve"))
        return serve(argv[2], atoi(argv[3]));
    if (argc == 5 && !strcmp(argv[1], "count"))
        return count(argv[2], atoi(argv[3]), atof(argv[4]));
    if (argc == 7 && !strcmp(argv[1], "flood"))
        return flood(argv[2], atoi(argv[3]), argv[4], atoi(argv[5]), atof(argv[6]));
    if (argc > 7 && !strcmp(argv[1], "stream"))
        return stream(argv[2], atoi(argv[3]), argv[4], atof(argv[5]), atof(argv[6]), argc - 7, argv + 7);
    if ((argc != 9 && argc != 10) || strcmp(argv[1], "call")) {
        fprintf(stderr, "see the head of sip_load.c\n");
        return 2;
    }
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    server_text = argv[2];
    proxy = argv[9]; /* or the NULL at the end */
    if (proxy)
        server.sin_port = htons(5060);
    if (inet_pton(AF_INET, proxy ? proxy : server_text, &server.sin_addr) != 1)
        die("not an address");
    first = atoi(argv[4]);
    clients = atoi(argv[5]);
    media = atoi(argv[8]);
    run = getpid();
    sockets = calloc(clients, sizeof *sockets);
    calls = calloc((size_t)clients * MOST, sizeof *calls);
    for (int i = 0; i < clients; i++) {
        char host[32];
        sprintf(host, "192.168.56.%d", first + i);
        sockets[i] = bound(host, 5060);
    }
    return call_all(atof(argv[6]), atof(argv[7]));
}
