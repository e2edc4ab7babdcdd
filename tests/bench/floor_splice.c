/* The least that a SOCKS 5 proxy in user space can do for a stream: splice by a blocking thread for each direction.
 *
 *   floor_splice HOST PORT PIPE_BYTES
 *
 * As bare as floor.c, for few connections: what a stream costs beyond this is the proxy's own.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static size_t size;

static void move(int from, int to) {
    int pipes[2];
    ssize_t in, out;
    if (pipe(pipes)) return;
    fcntl(pipes[1], F_SETPIPE_SZ, size);
    while ((in = splice(from, NULL, pipes[1], NULL, size, SPLICE_F_MOVE)) > 0)
        for (; in > 0; in -= out)
            if ((out = splice(pipes[0], NULL, to, NULL, in, SPLICE_F_MOVE)) <= 0) break;
    shutdown(to, SHUT_WR);
    close(pipes[0]);
    close(pipes[1]);
}

static void *back(void *argument) {
    int *pair = argument;
    move(pair[1], pair[0]);
    return NULL;
}

static void *serve(void *argument) {
    int client = (int)(intptr_t)argument, pair[2];
    unsigned char request[10], granted[10] = {5, 0, 0, 1};
    struct sockaddr_in to = {.sin_family = AF_INET};
    pthread_t thread;
    int server = socket(AF_INET, SOCK_STREAM, 0);
    if (recv(client, request, 3, MSG_WAITALL) == 3 && send(client, "\5", 2, 0) == 2 &&
        recv(client, request, 10, MSG_WAITALL) == 10) {
        memcpy(&to.sin_addr, request + 4, 4);
        memcpy(&to.sin_port, request + 8, 2);
        if (!connect(server, (struct sockaddr *)&to, sizeof to) && send(client, granted, 10, 0) == 10) {
            pair[0] = client;
            pair[1] = server;
            pthread_create(&thread, NULL, back, pair);
            move(client, server);
            pthread_join(thread, NULL);
        }
    }
    close(client);
    close(server);
    return NULL;
}

int main(int argc, char **argv) {
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0), fd;
    pthread_t thread;
    if (argc < 4) return 2;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    size = atol(argv[3]);
    signal(SIGPIPE, SIG_IGN);
    inet_pton(AF_INET, argv[1], &here.sin_addr);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 64)) return 1;
    while ((fd = accept(listener, NULL, NULL)) >= 0)
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd) == 0) pthread_detach(thread);
    return 1;
}
