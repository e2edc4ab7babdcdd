// A program that tries to get past `algate exec`, or that does what few programs do: exec_attacks WHAT ADDRESS.
// It says the result of the call that counts: "ok", or the name of the error.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/io_uring.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define WEB 8080
#define MPTCP 262

static struct sockaddr_in there;
static volatile struct sockaddr_in flipping;
static volatile int stop;

static int say(long result) {
    printf("%s\n", result < 0 ? strerrorname_np(errno) : "ok");
    return 0;
}

// The page of a connected socket.
static int get(int sock) {
    char answer[4096] = {0}, *text = "GET / HTTP/1.0\r\n\r\n";
    size_t have = 0;
    if (send(sock, text, strlen(text), MSG_NOSIGNAL) < 0) return say(-1);
    for (long got; have < sizeof answer - 1 && (got = read(sock, answer + have, sizeof answer - 1 - have)) > 0;) have += got;
    puts(strstr(answer, "hello") ? "hello" : "nothing");
    return 0;
}

static int connected(int sock) {
    if (sock < 0 || connect(sock, (struct sockaddr *)&there, sizeof there)) return say(-1);
    return get(sock);
}

static int datagram(int sock, const char *data, size_t size) {
    return say(sock < 0 ? -1 : sendto(sock, data, size, 0, (struct sockaddr *)&there, sizeof there));
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return address;
}

// More messages in one call than anybody looks at: the last one leads outside.
static int many(int count) {
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in here = loopback(9);
    struct mmsghdr *heads = calloc(count, sizeof *heads);
    struct iovec part = {"x", 1};
    for (int number = 0; number < count; number++) {
        heads[number].msg_hdr.msg_iov = &part;
        heads[number].msg_hdr.msg_iovlen = 1;
        heads[number].msg_hdr.msg_name = number == count - 1 ? (void *)&there : &here;
        heads[number].msg_hdr.msg_namelen = sizeof here;
    }
    return say(sendmmsg(sock, heads, count, 0));
}

// io_uring's own connect, with nothing of a library.
static int uring(void) {
    struct io_uring_params params = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &params);
    if (ring < 0) return say(-1);
    size_t size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t completions = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *queue = mmap(0, size > completions ? size : completions, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entries =
        mmap(0, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (queue == MAP_FAILED || entries == MAP_FAILED) return say(-1);
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    entries[0] = (struct io_uring_sqe){.opcode = IORING_OP_CONNECT, .fd = sock, .addr = (unsigned long)&there, .off = sizeof there};
    ((unsigned *)(queue + params.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) return say(-1);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(queue + params.cq_off.cqes);
    if (done->res < 0) return errno = -done->res, say(-1);
    return get(sock);
}

// The socket comes from another process, which has made it.
static int passed(void) {
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    char room[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {"x", 1};
    struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    if (fork() == 0) {
        int sock = socket(AF_INET, SOCK_STREAM, 0);
        struct cmsghdr *control = CMSG_FIRSTHDR(&head);
        *control = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(control), &sock, sizeof sock);
        _exit(sendmsg(pair[1], &head, 0) < 0);
    }
    wait(0);
    char byte;
    part = (struct iovec){&byte, 1};
    if (recvmsg(pair[0], &head, 0) < 0) return say(-1);
    int sock;
    memcpy(&sock, CMSG_DATA(CMSG_FIRSTHDR(&head)), sizeof sock);
    return connected(sock);
}

// Connected by a child, used here.
static int shared(void) {
    int sock = socket(AF_INET, SOCK_STREAM, 0), code;
    if (fork() == 0) _exit(connect(sock, (struct sockaddr *)&there, sizeof there) ? errno : 0);
    wait(&code);
    if (code) return errno = WEXITSTATUS(code), say(-1);
    return get(sock);
}

static int duplicate(void) {
    int sock = socket(AF_INET, SOCK_STREAM, 0), other = dup(sock);
    if (connect(other, (struct sockaddr *)&there, sizeof there)) return say(-1);
    close(other);
    return get(sock);
}

// As event loops do it.
static int waiting(void) {
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), error = 0;
    socklen_t size = sizeof error;
    if (connect(sock, (struct sockaddr *)&there, sizeof there) && errno != EINPROGRESS) return say(-1);
    struct pollfd look = {sock, POLLOUT, 0};
    if (poll(&look, 1, 20000) != 1) return errno = ETIMEDOUT, say(-1);
    getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) return errno = error, say(-1);
    if (!(fcntl(sock, F_GETFL) & O_NONBLOCK)) return errno = EBADFD, say(-1);
    // Many ask again; the first time the kernel may say 0.
    if (connect(sock, (struct sockaddr *)&there, sizeof there) && errno != EISCONN) return say(-1);
    if (connect(sock, (struct sockaddr *)&there, sizeof there) == 0 || errno != EISCONN) return say(-1);
    fcntl(sock, F_SETFL, 0);
    return get(sock);
}

// A socket whose first connection has failed is used for another one, which Linux allows.
static int again(void) {
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in closed = there;
    closed.sin_port = htons(8099);
    if (connect(sock, (struct sockaddr *)&closed, sizeof closed) == 0) {
        char byte;  // a namespace says it later
        if (read(sock, &byte, 1) >= 0) return errno = EBADFD, say(-1);
        close(sock);
        sock = socket(AF_INET, SOCK_STREAM, 0);
    }
    return connected(sock);
}

static int mapped(void) {
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(WEB)};
    to.sin6_addr.s6_addr[10] = to.sin6_addr.s6_addr[11] = 0xff;
    memcpy(to.sin6_addr.s6_addr + 12, &there.sin_addr, 4);
    int sock = socket(AF_INET6, SOCK_STREAM, 0);
    if (connect(sock, (struct sockaddr *)&to, sizeof to)) return say(-1);
    return get(sock);
}

static void *flip(void *other) {
    while (!stop) {
        flipping.sin_addr.s_addr = *(in_addr_t *)other;
        flipping.sin_addr.s_addr = there.sin_addr.s_addr;
    }
    return 0;
}

// The address changes while it is looked at.
static int race(const char *second) {
    pthread_t thread;
    in_addr_t other = inet_addr(second);
    memcpy((void *)&flipping, &there, sizeof there);
    pthread_create(&thread, 0, flip, &other);
    for (int number = 0; number < 200; number++) {
        int sock = socket(AF_INET, SOCK_STREAM, 0);
        connect(sock, (struct sockaddr *)&flipping, sizeof flipping);
        close(sock);
    }
    stop = 1;
    pthread_join(thread, 0);
    return puts("done"), 0;
}

static int faults(long result, int expected) {
    if (result >= 0) errno = 0;
    return errno == expected ? 0 : (printf("%s for %s\n", strerrorname_np(errno), strerrorname_np(expected)), 1);
}

// Addresses that are not in memory, or only in part; calls after them are answered as before.
static int pointers(void) {
    char *pages = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(pages + 4096, 4096);
    void *bad[] = {(void *)16, (void *)-1L, (void *)-4096L, (void *)0x7fffffffffffff00, (void *)(1UL << 63), pages + 4088};
    int sock = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0);
    memcpy(pages + 4088, &there, 8);
    for (int number = 0; number < 6; number++) {
        struct iovec part = {"x", 1};
        struct msghdr head = {.msg_name = bad[number], .msg_namelen = sizeof there, .msg_iov = &part, .msg_iovlen = 1};
        if (faults(connect(sock, bad[number], sizeof there), EFAULT)) return 0;
        if (faults(sendto(udp, "x", 1, 0, bad[number], sizeof there), EFAULT)) return 0;
        if (faults(sendmsg(udp, &head, 0), EFAULT)) return 0;
        if (faults(syscall(SYS_sendmsg, udp, bad[number], 0), EFAULT)) return 0;
        if (faults(syscall(SYS_sendmmsg, udp, bad[number], 3, 0), EFAULT)) return 0;
    }
    if (faults(syscall(SYS_connect, sock, 0, sizeof there), EFAULT)) return 0;
    if (faults(syscall(SYS_connect, sock, &there, 1), EINVAL)) return 0;
    if (faults(syscall(SYS_connect, sock, &there, 129), EINVAL)) return 0;
    if (faults(syscall(SYS_connect, sock, &there, -1), EINVAL)) return 0;
    if (connect(sock, (struct sockaddr *)&there, sizeof there)) return say(-1);
    socklen_t size = sizeof there;
    for (int number = 0; number < 5; number++) {
        if (faults(syscall(SYS_getpeername, sock, &there, bad[number]), EFAULT)) return 0;
        if (faults(syscall(SYS_getpeername, sock, bad[number], &size), EFAULT)) return 0;
    }
    return get(sock);
}

static int abstract(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "\0algate-exec-outside"};
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    return say(connect(sock, (struct sockaddr *)&address, sizeof(sa_family_t) + 20));
}

static int local(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), sock = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = loopback(0);
    socklen_t size = sizeof here;
    if (bind(listener, (struct sockaddr *)&here, size) || listen(listener, 1)) return say(-1);
    getsockname(listener, (struct sockaddr *)&here, &size);
    return say(connect(sock, (struct sockaddr *)&here, size));
}

// The calls of 32 bits have numbers of their own.
static int old(void) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(359), "b"(AF_INET), "c"(SOCK_STREAM), "d"(0) : "memory");
    if (result < 0) return errno = -result, say(-1);
    return say(0);
#else
    return errno = ENOSYS, say(-1);
#endif
}

int main(int count, char **words) {
    const char *what = words[1];
    there = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(WEB), .sin_addr.s_addr = inet_addr(words[2])};
    if (!strcmp(what, "plain")) return connected(socket(AF_INET, SOCK_STREAM, 0));
    if (!strcmp(what, "mptcp")) return connected(socket(AF_INET, SOCK_STREAM, MPTCP));
    if (!strcmp(what, "sctp")) return connected(socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP));
    if (!strcmp(what, "dccp")) return connected(socket(AF_INET, SOCK_DCCP, IPPROTO_DCCP));
    if (!strcmp(what, "udplite")) return datagram(socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), "x", 1);
    if (!strcmp(what, "ping")) return datagram(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP), "\10\0\0\0\0\1\0\1", 8);
    if (!strcmp(what, "raw")) return datagram(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), "\10\0\0\0\0\1\0\1", 8);
    if (!strcmp(what, "packet")) return say(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)));
    if (!strcmp(what, "vsock")) return say(socket(AF_VSOCK, SOCK_STREAM, 0));
    if (!strcmp(what, "fastopen")) return say(sendto(socket(AF_INET, SOCK_STREAM, 0), "x", 1, MSG_FASTOPEN, (void *)&there, sizeof there));
    if (!strcmp(what, "many")) return many(65);
    if (!strcmp(what, "most")) return many(1024);
    if (!strcmp(what, "uring")) return uring();
    if (!strcmp(what, "passed")) return passed();
    if (!strcmp(what, "shared")) return shared();
    if (!strcmp(what, "duplicate")) return duplicate();
    if (!strcmp(what, "waiting")) return waiting();
    if (!strcmp(what, "again")) return again();
    if (!strcmp(what, "mapped")) return mapped();
    if (!strcmp(what, "pointers")) return pointers();
    if (!strcmp(what, "race")) return race(words[3]);
    if (!strcmp(what, "abstract")) return abstract();
    if (!strcmp(what, "local")) return local();
    if (!strcmp(what, "old")) return old();
    return 2;
}
