/* weir selftest: the worker's life, from its start under the name llm-worker-rbee to its end by a signal. See selftest.h. */
#include "cli/selftest.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

bool selftest_check(selftest *t, bool ok, const char *name, const char *format, ...) {
    va_list args;
    printf("%s  %s: ", ok ? "passed" : "FAILED", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
    t->n_passed += ok;
    t->n_failed += !ok;
    return ok;
}

/* ---- generation ------------------------------------------------------------------------------------------------------- */

static void take_event(generation *g, const char *data, int64_t since_us, int64_t stream_us, int64_t now_us) {
    if (strcmp(data, "[DONE]") == 0) {
        g->done = true;
        g->total_us = now_us - since_us;
        return;
    }
    json_t *event = json_loads(data, JSON_REJECT_DUPLICATES, NULL);
    const char *type = json_string_value(json_object_get(event, "type")),
               *text = json_string_value(json_object_get(event, "t"));
    if (type && strcmp(type, "started") == 0) {
        g->started = g->n_tokens == 0;
        g->started_us = now_us - stream_us;
    } else if (type && strcmp(type, "token") == 0 && text) {
        if (g->n_tokens == 0) g->first_us = now_us - since_us;
        if (g->n_tokens < SELFTEST_MAX_ARRIVALS) g->arrivals_us[g->n_tokens] = now_us;
        g->n_tokens++;
        buf_puts(&g->text, text);
    } else if (type && (strcmp(type, "end") == 0 || strcmp(type, "error") == 0)) {
        const char *reason = json_string_value(json_object_get(event, type[1] == 'n' ? "stop_reason" : "code"));
        snprintf(g->stop_reason, sizeof g->stop_reason, "%s", reason ? reason : "?");
    }
    json_decref(event);
}

/* The path of the stream from the reply to a POST. */
static int stream_path(client *c, char out[256], weir_error *err) {
    TRY(client_finish(c, 10000, err));
    json_t *reply = json_loads(c->body.data ? c->body.data : "", 0, NULL);
    const char *job = json_string_value(json_object_get(reply, "job_id")),
               *url = json_string_value(json_object_get(reply, "sse_url"));
    bool sound = job && strncmp(job, "job-", 4) == 0 && url && url[0] == '/' && strlen(url) < 256;
    if (sound) snprintf(out, 256, "%s", url);
    json_decref(reply);
    FAIL_IF(!sound, err, WEIR_E_FORMAT, "", "status %d, and the reply lacks job_id and sse_url: %.200s", c->status,
            c->body.data ? c->body.data : "");
    return 0;
}

int selftest_generate(int port, const char *path, const char *body, size_t stop_after, generation *g, weir_error *err) {
    memset(g, 0, sizeof *g);
    client c, answer = {.fd = -1};
    char url[256];
    TRY(client_start(&c, port, "POST", path, body, 30000, err));
    int64_t since_us = c.sent_us;
    int result = 0;
    if (!c.chunked) { /* dual call: JSON first */
        result = stream_path(&c, url, err);
        g->accepted_us = clock_now_us() - since_us;
        answer = c;
        if (result >= 0)
            result = client_start(&c, port, "GET", url, NULL, 30000, err);
        else
            c.fd = -1;
    }
    if (result >= 0 && c.status != 200) result = error_set(err, WEIR_E_FORMAT, path, "status %d", c.status);
    size_t reads_before = c.n_reads;
    while (result >= 0 && (result = client_next_event(&c, 60000, err)) > 0) {
        take_event(g, c.event, since_us, c.sent_us, c.arrived_us);
        if (stop_after && g->n_tokens >= stop_after) break;
    }
    g->n_reads = result >= 0 ? c.n_reads - reads_before : 0;
    if (result >= 0 || c.fd >= 0) client_close(&c);
    if (answer.fd >= 0) client_close(&answer);
    if (result >= 0 && g->text.failed) result = error_set(err, WEIR_E_NOMEM, "", "no memory for the text");
    return result < 0 ? result : 0;
}

double selftest_metric(int port, const char *name) {
    client c;
    weir_error err;
    double value = -1;
    if (client_start(&c, port, "GET", "/metrics", NULL, 5000, &err) < 0) return -1;
    size_t n = strlen(name);
    if (client_finish(&c, 5000, &err) >= 0 && c.body.data) {
        for (const char *line = c.body.data; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
            if (strncmp(line, name, n) == 0 && line[n] == ' ') value = strtod(line + n, NULL);
        }
    }
    client_close(&c);
    return value;
}

/* ---- the worker's life ------------------------------------------------------------------------------------------------ */

/* Its output goes to a pipe that nobody reads while all is well, as a hive may do. */
static int spawn_worker(selftest *t, weir_error *err) {
    char port[16], device[24], hive_url[64];
    snprintf(port, sizeof port, "%d", t->port);
    snprintf(device, sizeof device, "%lld", (long long)t->s->device);
    snprintf(hive_url, sizeof hive_url, "http://127.0.0.1:%lld", (long long)t->s->hive_port);
    const char *argv[] = {"llm-worker-rbee",
                          "--worker-id",
                          t->s->worker_id,
                          "--model",
                          t->s->model,
                          "--model-ref",
                          t->s->model,
                          "--backend",
                          t->s->backend,
                          "--device",
                          device,
                          "--port",
                          port,
                          "--hive-url",
                          hive_url,
                          "--local-mode",
                          NULL};
    int ends[2];
    FAIL_IF(pipe2(ends, O_CLOEXEC) != 0, err, WEIR_E_IO, "worker", "no pipe: %s", strerror(errno));
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        unsetenv("LLORCH_API_TOKEN");
        execv("/proc/self/exe", (char **)argv);
        _exit(127);
    }
    int reason = errno;
    close(ends[1]);
    t->output = ends[0];
    FAIL_IF(pid < 0, err, WEIR_E_IO, "worker", "cannot be started: %s", strerror(reason));
    t->worker = pid;
    return 0;
}

static void show_output(selftest *t) {
    char bytes[4096];
    ssize_t n;
    struct pollfd waiting = {.fd = t->output, .events = POLLIN};
    fputs("The worker's output:\n", stderr);
    while (poll(&waiting, 1, 200) > 0 && (n = read(t->output, bytes, sizeof bytes)) > 0) fwrite(bytes, 1, (size_t)n, stderr);
}

/* Health every 0.5 s until any 2xx. */
static bool wait_healthy(selftest *t) {
    int64_t begin = clock_now_us();
    while (clock_now_us() - begin < t->s->timeout_s * 1000000) {
        client c;
        weir_error err;
        int status = 0;
        if (waitpid(t->worker, &status, WNOHANG) == t->worker) {
            t->worker = 0;
            show_output(t);
            return selftest_check(t, false, "health", "the worker ended with code %d",
                                  WIFEXITED(status) ? WEXITSTATUS(status) : -1);
        }
        if (client_start(&c, t->port, "GET", "/health", NULL, 2000, &err) >= 0) {
            status = c.status;
            client_close(&c);
            if (status / 100 == 2)
                return selftest_check(t, true, "health", "after %.2f s", (double)(clock_now_us() - begin) / 1e6);
        }
        clock_sleep_us(500000);
    }
    show_output(t);
    return selftest_check(t, false, "health", "not within %lld s", (long long)t->s->timeout_s);
}

static bool wait_heartbeat(selftest *t) {
    int64_t begin = clock_now_us();
    while (hive_n_heartbeats(t->hive) == 0 && clock_now_us() - begin < 35000000) clock_sleep_us(20000);
    int n = hive_n_heartbeats(t->hive);
    return selftest_check(t, n > 0 && hive_n_bad(t->hive) == 0, "heartbeat", "%d well-formed, %d others, %.2f s after health",
                          n, hive_n_bad(t->hive), (double)(clock_now_us() - begin) / 1e6);
}

/* The inference of the contract's test, in the forms of its time: dual call, single call, operation. */
static void check_inference(selftest *t) {
    static const struct {
        const char *name, *path, *body;
    } forms[] = {
        {"inference, dual call", "/v1/inference",
         "{\"prompt\":\"The capital of France is\",\"max_tokens\":50,\"temperature\":0.7}"},
        {"inference, single call", "/v1/inference",
         "{\"job_id\":\"test-job-001\",\"prompt\":\"The capital of France is\",\"max_tokens\":50,\"temperature\":0.7}"},
        {"inference, operation", "/v1/jobs",
         "{\"operation\":\"infer\",\"hive_id\":\"localhost\",\"model\":\"m\",\"prompt\":\"The capital of France "
         "is\",\"max_tokens\":50,"
         "\"temperature\":0.7,\"stream\":true}"},
    };
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        weir_error err = {0};
        generation g;
        if (selftest_generate(t->port, forms[i].path, forms[i].body, 0, &g, &err) < 0) {
            selftest_check(t, false, forms[i].name, "%s %s", err.place, err.message);
        } else {
            selftest_check(t, g.started && g.n_tokens > 0 && g.done && g.total_us < 30000000, forms[i].name,
                           "%zu tokens in %.2f s, %s, %s", g.n_tokens, (double)g.total_us / 1e6, g.stop_reason,
                           g.done ? "[DONE]" : "no [DONE]");
        }
        buf_free(&g.text);
    }
}

/* SIGTERM while a stream is open: the stream ends in order, the process with 0, within 2 s. */
static void stop_worker(selftest *t) {
    client c;
    weir_error err = {0};
    bool open =
        client_start(&c, t->port, "POST", "/v1/inference",
                     "{\"job_id\":\"last\",\"prompt\":\"Count: one, two, three,\",\"max_tokens\":2000}", 5000, &err) >= 0;
    if (open) client_next_event(&c, 5000, &err);
    int64_t begin = clock_now_us();
    int status = 0;
    kill(t->worker, SIGTERM);
    bool done = false;
    while (open && client_next_event(&c, 3000, &err) > 0) done = done || strcmp(c.event, "[DONE]") == 0;
    pid_t ended = 0;
    while (ended == 0 && clock_now_us() - begin < 10000000) {
        ended = waitpid(t->worker, &status, WNOHANG);
        if (ended == 0) clock_sleep_us(5000);
    }
    double seconds = (double)(clock_now_us() - begin) / 1e6;
    if (open) client_close(&c);
    bool ok = ended == t->worker && WIFEXITED(status) && WEXITSTATUS(status) == 0 && seconds < 2 && done;
    selftest_check(t, ok, "shutdown", "%.2f s after SIGTERM, exit code %d, the open stream %s", seconds,
                   ended && WIFEXITED(status) ? WEXITSTATUS(status) : -1, done ? "ended with [DONE]" : "was cut");
    if (ended == t->worker) t->worker = 0;
}

int command_selftest(const settings *s) {
    if (s->model == NULL) return command_misused("selftest needs --model FILE");
    if (access(s->model, F_OK) != 0) {
        printf("skipped: the model %s does not exist\n", s->model);
        return EXIT_OK;
    }
    weir_error err = {0};
    selftest t = {.s = s, .port = (int)s->port, .output = -1};
    int result = hive_open(&t.hive, (int)s->hive_port, &err);
    if (result >= 0) result = spawn_worker(&t, &err);
    if (result >= 0 && wait_healthy(&t) && wait_heartbeat(&t)) {
        check_inference(&t);
        selftest_criteria(&t);
        stop_worker(&t);
    }
    if (result < 0) command_failed(&err);
    if (t.worker > 0) {
        kill(t.worker, SIGKILL);
        waitpid(t.worker, NULL, 0);
    }
    if (t.output >= 0) close(t.output);
    hive_close(&t.hive);
    bool passed = result >= 0 && t.n_failed == 0;
    printf("%s: %d passed, %d failed\n", passed ? "PASSED" : "FAILED", t.n_passed, t.n_failed);
    return passed ? EXIT_OK : EXIT_FAILED;
}
