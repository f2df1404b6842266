/* See heartbeat.h. */
#include "api/heartbeat.h"

#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/worker_wire.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

struct heartbeat {
    heartbeat_options options;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t change;
    atomic_bool stopping;
};

static size_t drop(char *data, size_t size, size_t n, void *user) {
    (void)data, (void)user;
    return size * n;
}

static int ask_whether_to_stop(void *user, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d) {
    const atomic_bool *stopping = user;
    (void)a, (void)b, (void)c, (void)d;
    return atomic_load(stopping);
}

static void init_curl(void) { curl_global_init(CURL_GLOBAL_DEFAULT); }

static int post(const char *url, const char *body, size_t n_bytes, atomic_bool *stopping, weir_error *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_curl);
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    long status = 0;
    CURLcode result = CURLE_OUT_OF_MEMORY;
    if (headers) headers = curl_slist_append(headers, "Expect:");
    if (curl && headers) {
        curl_easy_setopt(curl, CURLOPT_URL, url);
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)n_bytes);
        curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
        curl_easy_setopt(curl, CURLOPT_FORBID_REUSE, 1L); /* the receiver may serve one connection at a time */
        curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, 5000L);
        curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(curl, CURLOPT_PROXY, "");
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, drop);
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, ask_whether_to_stop);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, stopping);
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
        result = curl_easy_perform(curl);
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    FAIL_IF(result != CURLE_OK, err, WEIR_E_IO, url, "POST failed: %s", curl_easy_strerror(result));
    FAIL_IF(status < 200 || status > 299, err, WEIR_E_IO, url, "POST was answered with status %ld", status);
    return 0;
}

int heartbeat_post(const char *url, const char *body, size_t n_bytes, weir_error *err) {
    atomic_bool never = false;
    return post(url, body, n_bytes, &never, err);
}

/* One body for both receivers: each ignores the other's members. */
static void send_one(heartbeat *h, const char *base_url, const char *path, const char *zone) {
    weir_error err = {0};
    char now[48];
    buf url = BUF_INIT, body = BUF_INIT;
    size_t n = base_url ? strlen(base_url) : 0;
    if (n == 0) return;
    while (n > 0 && base_url[n - 1] == '/') n--;
    buf_append(&url, base_url, n);
    buf_puts(&url, path);
    clock_rfc3339(now, sizeof now, 9, zone);
    buf_puts(&body, "{\"worker_id\":");
    worker_write_string(&body, h->options.worker_id, strlen(h->options.worker_id));
    buf_printf(&body, ",\"timestamp\":\"%s\",\"health_status\":\"healthy\",\"worker\":", now);
    h->options.write_worker(&body, h->options.user);
    buf_putc(&body, '}');
    if (url.failed || body.failed) log_write(LOG_WARN, "heartbeat: out of memory");
    else if (post(url.data, body.data, body.n_bytes, &h->stopping, &err) < 0 && !atomic_load(&h->stopping))
        log_write(LOG_WARN, "heartbeat: %s: %s", err.place, err.message);
    buf_free(&url);
    buf_free(&body);
}

static void *beat(void *user) {
    heartbeat *h = user;
    int64_t next_us = clock_now_us();
    while (!atomic_load(&h->stopping)) {
        send_one(h, h->options.hive_url, "/v1/heartbeat", "+00:00");
        send_one(h, h->options.queen_url, "/v1/worker-heartbeat", "Z");
        /* By the clock, not after the answer: a slow receiver does not move the ticks. Missed ones are not made up for. */
        do next_us += h->options.period_ms * 1000;
        while (next_us < clock_now_us());
        struct timespec until = {.tv_sec = next_us / 1000000, .tv_nsec = next_us % 1000000 * 1000};
        pthread_mutex_lock(&h->lock);
        while (!atomic_load(&h->stopping) && pthread_cond_timedwait(&h->change, &h->lock, &until) != ETIMEDOUT) {
        }
        pthread_mutex_unlock(&h->lock);
    }
    return NULL;
}

int heartbeat_start(heartbeat **out, const heartbeat_options *options, weir_error *err) {
    *out = NULL;
    heartbeat *h = calloc(1, sizeof *h);
    FAIL_IF(h == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the heartbeat");
    h->options = *options;
    pthread_condattr_t attributes;
    pthread_mutex_init(&h->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&h->change, &attributes);
    pthread_condattr_destroy(&attributes);
    int result = pthread_create(&h->thread, NULL, beat, h);
    if (result != 0) {
        pthread_cond_destroy(&h->change);
        pthread_mutex_destroy(&h->lock);
        free(h);
        FAIL(err, WEIR_E_INTERNAL, NULL, "the heartbeat's thread cannot be started: %s", strerror(result));
    }
    *out = h;
    return 0;
}

void heartbeat_stop(heartbeat **p) {
    heartbeat *h = *p;
    *p = NULL;
    if (h == NULL) return;
    pthread_mutex_lock(&h->lock);
    atomic_store(&h->stopping, true);
    pthread_cond_signal(&h->change);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    pthread_cond_destroy(&h->change);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
