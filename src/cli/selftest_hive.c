/* See selftest_hive.h. */
#include "cli/selftest_hive.h"

#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

enum { MAX_HEARTBEATS = 256 };

struct hive {
    int fd;
    pthread_t thread;
    atomic_bool closing;
    atomic_int n_heartbeats, n_bad; /* stored after the stamp, sequentially consistent */
    _Atomic int64_t arrived_us[MAX_HEARTBEATS];
};

static bool is_heartbeat(const char *body) {
    json_t *root = json_loads(body, JSON_REJECT_DUPLICATES, NULL);
    const char *status = json_string_value(json_object_get(root, "health_status"));
    bool sound = json_is_string(json_object_get(root, "worker_id")) && json_is_string(json_object_get(root, "timestamp")) &&
                 status && (strcmp(status, "healthy") == 0 || strcmp(status, "degraded") == 0);
    json_decref(root);
    return sound;
}

/* The whole request must come in one read of at most 4096 bytes. */
static void serve(hive *h, int fd) {
    static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"status\":\"ok\"}";
    static const char bad[] = "HTTP/1.1 400 Bad Request\r\n\r\n", unknown[] = "HTTP/1.1 404 Not Found\r\n\r\n";
    char request[4097];
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    ssize_t n = poll(&waiting, 1, 5000) > 0 ? recv(fd, request, sizeof request - 1, 0) : 0;
    const char *answer = unknown;
    if (n > 0) {
        request[n] = '\0';
        const char *body = strstr(request, "\r\n\r\n");
        if (strstr(request, "POST /v1/heartbeat")) answer = body && is_heartbeat(body + 4) ? ok : bad;
    }
    int index = atomic_load(&h->n_heartbeats);
    if (answer == ok && index < MAX_HEARTBEATS) {
        atomic_store(&h->arrived_us[index], clock_now_us());
        atomic_fetch_add(&h->n_heartbeats, 1);
    } else if (answer != ok) {
        atomic_fetch_add(&h->n_bad, 1);
    }
    (void)!send(fd, answer, strlen(answer), MSG_NOSIGNAL);
}

static void *run(void *arg) {
    hive *h = arg;
    struct pollfd waiting = {.fd = h->fd, .events = POLLIN};
    while (!atomic_load(&h->closing)) {
        if (poll(&waiting, 1, 50) <= 0) continue;
        int fd = accept4(h->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        serve(h, fd);
        close(fd);
    }
    return NULL;
}

int hive_open(hive **out, int port, weir_error *err) {
    *out = NULL;
    hive *h = calloc(1, sizeof *h);
    FAIL_IF(h == NULL, err, WEIR_E_NOMEM, "hive", "no memory");
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    h->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (h->fd >= 0) setsockopt(h->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (h->fd < 0 || bind(h->fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(h->fd, 16) != 0 ||
        pthread_create(&h->thread, NULL, run, h) != 0) {
        int reason = errno;
        if (h->fd >= 0) close(h->fd);
        free(h);
        FAIL(err, WEIR_E_IO, "hive", "port %d cannot be opened: %s", port, strerror(reason));
    }
    *out = h;
    return 0;
}

void hive_close(hive **h) {
    if (*h == NULL) return;
    atomic_store(&(*h)->closing, true);
    pthread_join((*h)->thread, NULL);
    close((*h)->fd);
    free(*h);
    *h = NULL;
}

int hive_n_heartbeats(hive *h) {
    return atomic_load(&h->n_heartbeats);
}
int hive_n_bad(hive *h) {
    return atomic_load(&h->n_bad);
}
int64_t hive_arrived_us(hive *h, int index) {
    return atomic_load(&h->arrived_us[index]);
}
