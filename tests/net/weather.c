/* Delay, disorder and loss for what netfilter sends to a queue, where the kernel has no netem.
 *
 *   weather QUEUE MILLISECONDS JITTER PERCENT     every packet waits MILLISECONDS +- JITTER; PERCENT of them are lost
 *
 * Says "ready" when the queue is its own. Ends by a signal; then --queue-bypass lets everything through.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

enum { HELD = 1 << 16, BUFFER = 1 << 24 };

static struct packet { double due; uint32_t id; } heap[HELD]; /* the one that is due first on top */
static int held;
static double delay, jitter, loss;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void push(double due, uint32_t id) {
    int i = held++;
    for (; i && heap[(i - 1) / 2].due > due; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = (struct packet){due, id};
}

static void pop(void) {
    struct packet last = heap[--held];
    int i = 0;
    for (int child; (child = 2 * i + 1) < held; i = child) {
        if (child + 1 < held && heap[child + 1].due < heap[child].due) child++;
        if (heap[child].due >= last.due) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
}

static int arrived(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *data, void *unused) {
    uint32_t id = ntohl(nfq_get_msg_packet_hdr(data)->packet_id);
    (void)message, (void)unused;
    if (drand48() < loss || held == HELD) return nfq_set_verdict(queue, id, NF_DROP, 0, NULL);
    push(now() + delay + jitter * (2 * drand48() - 1), id);
    return 0;
}

int main(int argc, char **argv) {
    static char buffer[1 << 16];
    int on = 1, size = BUFFER;
    if (argc != 5) return 2;
    delay = atof(argv[2]) / 1e3, jitter = atof(argv[3]) / 1e3, loss = atof(argv[4]) / 100;
    srand48(time(NULL));
    struct nfq_handle *handle = nfq_open();
    struct nfq_q_handle *queue = handle ? nfq_create_queue(handle, atoi(argv[1]), arrived, NULL) : NULL;
    if (!queue || nfq_set_mode(queue, NFQNL_COPY_META, 0) < 0 || nfq_set_queue_maxlen(queue, HELD) < 0) {
        perror("queue");
        return 1;
    }
    struct pollfd socket = {.fd = nfq_fd(handle), .events = POLLIN};
    setsockopt(socket.fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof on);
    setsockopt(socket.fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    puts("ready");
    fflush(stdout);
    for (;;) {
        double wait = held ? heap[0].due - now() : 1;
        struct timespec time = {.tv_nsec = wait > 0 ? wait * 999999999 : 0};
        if (ppoll(&socket, 1, &time, NULL) > 0) {
            int length;
            for (int i = 0; i < 64 && (length = recv(socket.fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0; i++)
                nfq_handle_packet(handle, buffer, length);
        }
        for (double time = now(); held && heap[0].due <= time; pop())
            nfq_set_verdict(queue, heap[0].id, NF_ACCEPT, 0, NULL);
    }
}
