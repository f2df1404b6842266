/* A hostile crowd for a running server: many clients at once, streaming and not, some of which vanish at a random moment, while
 * another asks for /health all the time.
 *
 *     weir-load --port P [--pid PID] [--clients 64] [--requests 1000] [--vanish 30] [--health-ms 5] [--grow-mb 16] [--seed 1]
 *
 * Each prompt is first answered alone (greedy); every complete answer of the crowd must be that text: a crossed stream, a lost
 * token or an answer that changes with the load shows. At the end nothing may be running, no KV cache may be held, and the
 * server's memory (--pid) may not have grown since the first tenth of the requests. Prints what it measured; exit 1 on any failure.
 * A client of plain sockets, one thread, and one for /health. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"

enum { N_PROMPTS = 12, MAX_CLIENTS = 1024, MAX_SAMPLES = 1 << 20, GIVE_UP_S = 120 };

static struct {
    int port, n_clients, n_requests, vanish_percent, pid;
    double health_ms, grow_mb;
    uint64_t seed;
} options = {.n_clients = 64, .n_requests = 1000, .vanish_percent = 30, .health_ms = 5, .grow_mb = 16, .seed = 1};

static uint64_t random_below(uint64_t n) {
    options.seed = options.seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (options.seed >> 33) % n;
}

/* ---- requests and answers --------------------------------------------------------------------------------------------- */

static char *expected[N_PROMPTS]; /* the text, JSON-escaped as it came */

/* Short prompts, and every third long enough that its prefill takes several steps. */
static void append_prompt(buf *b, int prompt) {
    buf_printf(b, "Story number %d begins with %d ships on the sea. ", prompt, prompt * 7 + 3);
    for (int i = 0; prompt % 3 == 2 && i < 60; i++)
        buf_printf(b, "Ship %d carried %d barrels of salt and met captain %d. ", i, i * prompt + 11, i + prompt);
    buf_puts(b, "Then");
}

static int tokens_of(int prompt) { return 8 + prompt * 3; }

static void append_request(buf *b, int prompt, bool stream) {
    buf body = BUF_INIT;
    buf_puts(&body, "{\"prompt\":\"");
    append_prompt(&body, prompt);
    buf_printf(&body, "\",\"max_tokens\":%d,\"temperature\":0,\"stream\":%s}", tokens_of(prompt), stream ? "true" : "false");
    buf_printf(b,
               "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
               "Connection: close\r\n\r\n%s",
               body.n_bytes, body.data);
    buf_free(&body);
}

/* The body of a response, chunks put together. */
static bool body_of(const buf *raw, buf *body) {
    char *split = raw->data ? memmem(raw->data, raw->n_bytes, "\r\n\r\n", 4) : NULL;
    if (split == NULL || strncmp(raw->data, "HTTP/1.1 200", 12) != 0) return false;
    const char *p = split + 4, *end = raw->data + raw->n_bytes;
    *split = '\0';
    const bool chunked = strcasestr(raw->data, "transfer-encoding: chunked") != NULL;
    *split = '\r';
    if (!chunked) {
        buf_append(body, p, (size_t)(end - p));
        return true;
    }
    for (;;) {
        char *after;
        const unsigned long n = strtoul(p, &after, 16);
        if (after == p || after + 2 > end) return false;
        p = after + 2;
        if (n == 0) return true;
        if ((size_t)(end - p) < n + 2) return false;
        buf_append(body, p, n);
        p += n + 2;
    }
}

/* All "text" members of the body, one after the other, still escaped. */
static char *text_of(const buf *body) {
    buf text = BUF_INIT;
    for (const char *p = body->data; p && (p = strstr(p, "\"text\":")) != NULL;) {
        p += 7;
        while (*p == ' ') p++;
        if (*p++ != '"') continue;
        while (*p && *p != '"') {
            if (*p == '\\' && p[1]) buf_putc(&text, *p++);
            buf_putc(&text, *p++);
        }
    }
    return buf_take(&text, NULL);
}

static int connect_to(bool blocking) {
    const int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        fprintf(stderr, "cannot connect to port %d: %s\n", options.port, strerror(errno));
        exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (!blocking) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return fd;
}

/* One blocking request; the whole response into *raw. */
static void ask(const char *request, size_t n_bytes, buf *raw) {
    const int fd = connect_to(true);
    char bytes[65536];
    ssize_t n;
    if (write(fd, request, n_bytes) != (ssize_t)n_bytes) exit(1);
    while ((n = read(fd, bytes, sizeof bytes)) > 0) buf_append(raw, bytes, (size_t)n);
    close(fd);
}

static void learn_expected(void) {
    for (int i = 0; i < N_PROMPTS; i++) {
        buf request = BUF_INIT, raw = BUF_INIT, body = BUF_INIT;
        append_request(&request, i, true);
        ask(request.data, request.n_bytes, &raw);
        if (!body_of(&raw, &body)) {
            fprintf(stderr, "prompt %d alone was not answered: %.300s\n", i, raw.data ? raw.data : "nothing");
            exit(1);
        }
        expected[i] = text_of(&body);
        buf_free(&request);
        buf_free(&raw);
        buf_free(&body);
    }
}

/* ---- /health ---------------------------------------------------------------------------------------------------------- */

static atomic_bool health_stop;
static float *health_ms;
static size_t n_health, n_health_failed;

static void *health_main(void *arg) {
    static const char request[] = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const int fd = connect_to(true);
    char bytes[4096];
    (void)arg;
    while (!atomic_load(&health_stop) && n_health < MAX_SAMPLES) {
        const int64_t begin = clock_now_us();
        if (write(fd, request, sizeof request - 1) != (ssize_t)sizeof request - 1) break;
        const ssize_t n = read(fd, bytes, sizeof bytes - 1);
        if (n <= 0 || strncmp(bytes, "HTTP/1.1 200", 12) != 0) n_health_failed++;
        if (n <= 0) break;
        health_ms[n_health++] = (float)(clock_now_us() - begin) * 1e-3f;
        clock_sleep_us(10000);
    }
    close(fd);
    return NULL;
}

static int by_value(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* ---- the crowd -------------------------------------------------------------------------------------------------------- */

typedef struct one {
    int fd; /* -1 = between requests */
    int prompt;
    buf raw;
    int64_t begin_us;
    int64_t vanish_us;  /* when the client goes away; 0 = it stays */
    size_t vanish_bytes; /* or after so many bytes; 0 = no */
} one;

static one crowd[MAX_CLIENTS];
static int n_started, n_whole, n_vanished, n_wrong;

static void one_start(one *c) {
    buf request = BUF_INIT;
    c->prompt = (int)random_below(N_PROMPTS);
    c->begin_us = clock_now_us();
    c->vanish_us = 0;
    c->vanish_bytes = 0;
    const bool stream = random_below(4) != 0;
    append_request(&request, c->prompt, stream);
    c->fd = connect_to(false);
    if (write(c->fd, request.data, request.n_bytes) != (ssize_t)request.n_bytes) exit(1);
    if (random_below(100) < (uint64_t)options.vanish_percent) {
        if (random_below(2)) c->vanish_us = c->begin_us + (int64_t)random_below(400000);
        else c->vanish_bytes = 1 + random_below(4000);
    }
    buf_clear(&c->raw);
    buf_free(&request);
    n_started++;
}

static void one_end(one *c) {
    close(c->fd);
    c->fd = -1;
}

static void one_check(one *c) {
    buf body = BUF_INIT;
    if (!body_of(&c->raw, &body)) {
        if (n_wrong++ < 5) fprintf(stderr, "prompt %d: not a whole answer: %.300s\n", c->prompt, c->raw.data ? c->raw.data : "nothing");
    } else {
        char *text = text_of(&body);
        if (strcmp(text, expected[c->prompt]) != 0 && n_wrong++ < 5)
            fprintf(stderr, "prompt %d: got \"%s\", alone it was \"%s\"\n", c->prompt, text, expected[c->prompt]);
        free(text);
        n_whole++;
    }
    buf_free(&body);
}

static void one_read(one *c) {
    char bytes[65536];
    const ssize_t n = read(c->fd, bytes, sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0) {
        buf_append(&c->raw, bytes, (size_t)n);
        return;
    }
    one_end(c);
    one_check(c);
}

static void vanish(one *c, int64_t now) {
    if (c->fd < 0 || !((c->vanish_us && now >= c->vanish_us) || (c->vanish_bytes && c->raw.n_bytes >= c->vanish_bytes))) return;
    one_end(c);
    n_vanished++;
}

static double server_mb(void) {
    char path[64];
    unsigned long long size, resident = 0;
    if (options.pid == 0) return 0;
    snprintf(path, sizeof path, "/proc/%d/statm", options.pid);
    FILE *f = fopen(path, "r");
    if (f == NULL) return 0;
    if (fscanf(f, "%llu %llu", &size, &resident) != 2) resident = 0;
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

/* Runs all requests; the server's memory after the first tenth into *early_mb. False when somebody waits too long. */
static bool run_crowd(double *early_mb) {
    struct pollfd fds[MAX_CLIENTS];
    for (int i = 0; i < options.n_clients; i++) crowd[i].fd = -1;
    for (;;) {
        int n_busy = 0;
        for (int i = 0; i < options.n_clients; i++) {
            one *c = &crowd[i];
            if (c->fd < 0 && n_started < options.n_requests) one_start(c);
            n_busy += c->fd >= 0;
            fds[i] = (struct pollfd){.fd = c->fd, .events = POLLIN};
        }
        if (n_busy == 0) return true;
        poll(fds, (nfds_t)options.n_clients, 5);
        const int64_t now = clock_now_us();
        for (int i = 0; i < options.n_clients; i++) {
            one *c = &crowd[i];
            if (c->fd >= 0 && (fds[i].revents & (POLLIN | POLLHUP | POLLERR))) one_read(c);
            vanish(c, now);
            if (c->fd >= 0 && now - c->begin_us > (int64_t)GIVE_UP_S * 1000000) {
                fprintf(stderr, "prompt %d has waited for %d s with %zu bytes received: a hang\n", c->prompt, GIVE_UP_S, c->raw.n_bytes);
                return false;
            }
        }
        if (*early_mb == 0 && n_whole + n_vanished >= options.n_requests / 10) *early_mb = server_mb();
    }
}

/* The first sample of a metric; -1 if it is not there. */
static double metric(const char *name) {
    static const char request[] = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    buf raw = BUF_INIT;
    ask(request, sizeof request - 1, &raw);
    double value = -1;
    const size_t n = strlen(name);
    for (const char *line = raw.data; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, name, n) != 0 || (line[n] != ' ' && line[n] != '{')) continue;
        const char *space = strchr(line, ' ');
        if (space) value = strtod(space, NULL);
        break;
    }
    buf_free(&raw);
    return value;
}

/* Within 5 s nothing runs, nothing waits, and no KV cache is held. */
static bool comes_to_rest(void) {
    double running = -1, waiting = -1, kv = -1;
    for (int i = 0; i < 100; i++) {
        running = metric("vllm:num_requests_running");
        waiting = metric("vllm:num_requests_waiting");
        kv = metric("vllm:kv_cache_usage_perc");
        if (running == 0 && waiting == 0 && kv == 0) return true;
        clock_sleep_us(50000);
    }
    fprintf(stderr, "after all: %g running, %g waiting, KV cache use %g\n", running, waiting, kv);
    return false;
}

static void parse(int argc, char **argv) {
    static const struct option known[] = {{"port", 1, 0, 'p'}, {"pid", 1, 0, 'i'}, {"clients", 1, 0, 'c'}, {"requests", 1, 0, 'r'},
                                          {"vanish", 1, 0, 'v'}, {"health-ms", 1, 0, 'h'}, {"grow-mb", 1, 0, 'g'}, {"seed", 1, 0, 's'},
                                          {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (o) {
        case 'p': options.port = atoi(optarg); break;
        case 'i': options.pid = atoi(optarg); break;
        case 'c': options.n_clients = atoi(optarg); break;
        case 'r': options.n_requests = atoi(optarg); break;
        case 'v': options.vanish_percent = atoi(optarg); break;
        case 'h': options.health_ms = atof(optarg); break;
        case 'g': options.grow_mb = atof(optarg); break;
        case 's': options.seed = strtoull(optarg, NULL, 10); break;
        default: exit(2);
        }
    }
    if (options.port <= 0 || options.n_clients < 1 || options.n_clients > MAX_CLIENTS || options.n_requests < 1) {
        fprintf(stderr, "usage: weir-load --port P [--pid PID] [--clients 64] [--requests 1000] [--vanish PERCENT] [--health-ms MS]"
                        " [--grow-mb MB] [--seed N]\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    pthread_t health;
    double early_mb = 0;
    parse(argc, argv);
    health_ms = malloc(MAX_SAMPLES * sizeof *health_ms);
    learn_expected();
    pthread_create(&health, NULL, health_main, NULL);
    const int64_t begin = clock_now_us();
    bool good = run_crowd(&early_mb);
    const double seconds = (double)(clock_now_us() - begin) * 1e-6;
    atomic_store(&health_stop, true);
    pthread_join(health, NULL);
    good = comes_to_rest() && good;
    const double late_mb = server_mb();
    qsort(health_ms, n_health, sizeof *health_ms, by_value);
    const double p50 = n_health ? (double)health_ms[n_health / 2] : -1, p99 = n_health ? (double)health_ms[n_health * 99 / 100] : -1;
    printf("%d requests from %d clients in %.1f s: %d whole answers, %d clients vanished, %d wrong answers\n", n_started,
           options.n_clients, seconds, n_whole, n_vanished, n_wrong);
    printf("/health: %zu asked, %zu failed, p50 %.2f ms, p99 %.2f ms, max %.2f ms (limit for p99: %.1f ms)\n", n_health, n_health_failed,
           p50, p99, n_health ? (double)health_ms[n_health - 1] : -1, options.health_ms);
    if (options.pid) printf("server memory: %.1f MB after a tenth of the requests, %.1f MB at the end\n", early_mb, late_mb);
    good = good && n_wrong == 0 && n_health > 0 && n_health_failed == 0 && p99 <= options.health_ms &&
           late_mb - early_mb <= options.grow_mb && n_whole + n_vanished == n_started;
    puts(good ? "passed" : "FAILED");
    return good ? 0 : 1;
}
