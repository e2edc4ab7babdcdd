/* The least that a SOCKS 5 proxy can do for a connection: what any other one costs beyond this is its own.
 *
 *   floor HOST PORT PROCESSES
 *
 * One epoll a process, SO_REUSEPORT; CONNECT to an IPv4 address without authentication and nothing else: no rule, no
 * log, no limit of time, no option on any socket, no check of what comes. Messages are expected whole. Only to measure.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { GREETING, REQUEST, CONNECTING, RELAY };
enum { FLOWS = 1 << 17, EVENTS = 256 };

static struct side {
    int step, other, ended;
} sides[FLOWS];
static int epoll, listener;

static void watch(int operation, int fd, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(epoll, operation, fd, &event);
}

static void end(int fd) {
    if (sides[fd].other) close(sides[fd].other);
    close(fd);
}

static void dial(int client, const unsigned char *request) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    memcpy(&to.sin_addr, request + 4, 4);
    memcpy(&to.sin_port, request + 8, 2);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0 || (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)) {
        if (fd >= 0) close(fd);
        end(client);
        return;
    }
    sides[fd] = (struct side){CONNECTING, client, 0};
    sides[client].other = fd;
    sides[client].step = RELAY;
    watch(EPOLL_CTL_ADD, fd, EPOLLOUT);
}

static void pass_on(int fd, char *buffer, ssize_t count) {
    int other = sides[fd].other;
    if (count > 0 && other) {
        if (send(other, buffer, count, MSG_NOSIGNAL) != count) end(fd);
    } else if (count == 0 && other && !sides[other].ended) {
        sides[fd].ended = 1;
        shutdown(other, SHUT_WR);
        watch(EPOLL_CTL_MOD, fd, 0);
    } else
        end(fd);
}

static void serve(void) {
    static char buffer[16384];
    static const unsigned char granted[10] = {5, 0, 0, 1};
    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    sides[fd] = (struct side){GREETING, 0, 0};
                    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
                }
                continue;
            }
            if (sides[fd].step == CONNECTING) {
                sides[fd].step = RELAY;
                if (send(sides[fd].other, granted, sizeof granted, MSG_NOSIGNAL) == sizeof granted)
                    watch(EPOLL_CTL_MOD, fd, EPOLLIN);
                else
                    end(fd);
                continue;
            }
            ssize_t n = recv(fd, buffer, sizeof buffer, 0);
            if (n < 0 && errno == EAGAIN) continue;
            if (sides[fd].step == RELAY)
                pass_on(fd, buffer, n);
            else if (n == 3 && sides[fd].step == GREETING && send(fd, "\5", 2, MSG_NOSIGNAL) == 2)
                sides[fd].step = REQUEST;
            else if (n == 10 && sides[fd].step == REQUEST)
                dial(fd, (unsigned char *)buffer);
            else
                end(fd);
        }
    }
}

int main(int argc, char **argv) {
    struct rlimit limit;
    int on = 1;
    if (argc < 4) return 2;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < FLOWS ? limit.rlim_max : FLOWS;
    setrlimit(RLIMIT_NOFILE, &limit);
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &here.sin_addr);
    for (int i = atoi(argv[3]); i > 1 && fork(); i--) {}
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) return 1;
    epoll = epoll_create1(0);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    serve();
}
